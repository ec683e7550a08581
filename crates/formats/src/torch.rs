//! Weights-only PyTorch files (`pytorch_model.bin`): read where they lie, executed never.
//!
//! Such a file is a zip archive of uncompressed members: `data.pkl` says which tensors there are, `data/KEY` holds the
//! bytes of each storage. Since they are not compressed, a contiguous tensor is a range of the file, as in safetensors,
//! and everything above reads both in the same way.
//!
//! `data.pkl` is a pickle, which in general is a program. Here it is read by a machine that knows the few instructions
//! which dictionaries of tensors need and no others; a *global* is compared with a short list of names and never looked
//! up, so there is nothing that could be called. Every index, length and range is checked against the file. Lists and
//! floats, which training checkpoints hold beside their weights, are passed over.

use std::{collections::HashMap, ops::Range, path::Path};

use crate::{
    dtype::Dtype,
    error::{FormatError, Result},
    safetensors::{Header, TensorInfo},
};

/// Largest `data.pkl`; that of a model with a million tensors is smaller.
const MAX_PICKLE_BYTES: usize = 256 << 20;
/// Dimensions of a tensor.
const MAX_DIMS: usize = 16;

const DAMAGED: &str =
    "the file is damaged, or not a weights-only PyTorch file; download it again, or export safetensors";
const STRANGE: &str =
    "only ordinary tensors in memory are read, nothing is executed; save a plain state_dict, or export safetensors";
const OLD: &str = "write it again: torch.save(torch.load(FILE, weights_only=True), FILE), or export safetensors";
const UNSAFE: &str = "only dictionaries of tensors are read, nothing is executed; do not trust this file";

/// The tensors of a file whose whole content is `bytes`; `path` is for messages only.
///
/// # Errors
/// The archive or the pickle breaks a rule, asks for anything but tensors in dictionaries, or holds a tensor that is not
/// contiguous.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
    let fail = |rule: String, hint: &str| FormatError::place(path, rule, hint);
    // The pickled magic number every file of the old form begins with.
    if bytes.starts_with(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") {
        let rule = "is a PyTorch file of the form before version 1.6, which is not read".to_owned();
        return Err(fail(rule, OLD));
    }
    let members = members(bytes).map_err(|rule| fail(rule, DAMAGED))?;
    let Some((prefix, pickle)) = members
        .iter()
        .find_map(|(name, range)| Some((name.strip_suffix("data.pkl")?, range)))
    else {
        return Err(fail("holds no data.pkl".into(), DAMAGED));
    };
    if let Some(order) = members.get(&format!("{prefix}byteorder"))
        && bytes[order.clone()] != *b"little"
    {
        let rule = "its byte order is not little-endian".to_owned();
        return Err(fail(rule, "export it on a little-endian machine"));
    }
    if pickle.len() > MAX_PICKLE_BYTES {
        let rule = format!(
            "its data.pkl has {} bytes, {MAX_PICKLE_BYTES} are allowed",
            pickle.len()
        );
        return Err(fail(rule, DAMAGED));
    }
    let mut machine = Machine::new(&bytes[pickle.clone()]);
    machine
        .run()
        .map_err(|e| fail(format!("data.pkl: {}", e.rule), e.hint))?;
    let named = machine
        .named()
        .map_err(|e| fail(format!("data.pkl: {}", e.rule), e.hint))?;
    let mut tensors = Vec::with_capacity(named.len());
    for (name, tensor) in named {
        let storage = &machine.storages[tensor.storage];
        let range = members.get(&format!("{prefix}data/{}", storage.key));
        let range = range.ok_or_else(|| format!("its storage {:?} is not in the archive", storage.key));
        let range = range.and_then(|range| place(tensor, storage, range));
        match range {
            Ok(range) => tensors.push(TensorInfo {
                name,
                dtype: storage.dtype,
                shape: tensor.shape.clone(),
                range,
            }),
            Err(rule) => return Err(FormatError::tensor(path, &name, rule, DAMAGED)),
        }
    }
    Header::listed(path, tensors)
}

/// Where a tensor's bytes are in the file.
fn place(
    tensor: &TensorRecord,
    storage: &Storage<'_>,
    member: &Range<usize>,
) -> std::result::Result<Range<usize>, String> {
    let size = storage.dtype.bits() / 8;
    if storage.elements.checked_mul(size) != Some(member.len()) {
        return Err(format!(
            "its storage says {} elements of {}, its member has {} bytes",
            storage.elements,
            storage.dtype,
            member.len()
        ));
    }
    let mut expected = 1usize;
    for (&dim, &stride) in tensor.shape.iter().zip(&tensor.stride).rev() {
        if dim > 1 && stride != expected {
            return Err(format!(
                "is not contiguous: shape {:?}, strides {:?}",
                tensor.shape, tensor.stride
            ));
        }
        expected = expected
            .checked_mul(dim)
            .ok_or("has more elements than can be counted")?;
    }
    let end = tensor.offset.checked_add(expected);
    match end {
        Some(end) if end <= storage.elements => Ok(member.start + tensor.offset * size..member.start + end * size),
        _ => Err(format!(
            "elements {}.. ({expected} of them) lie outside its storage of {}",
            tensor.offset, storage.elements
        )),
    }
}

/// Little-endian integers at a place, checked.
fn number<const N: usize>(bytes: &[u8], at: usize) -> std::result::Result<u64, String> {
    let end = at.checked_add(N).ok_or("an offset is too large")?;
    let part = bytes
        .get(at..end)
        .ok_or_else(|| format!("ends within a record at byte {at}"))?;
    Ok(part.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
}

/// The uncompressed members of a zip archive: name to range of the file.
fn members(bytes: &[u8]) -> std::result::Result<HashMap<String, Range<usize>>, String> {
    const END: usize = 22;
    let Some(last) = bytes.len().checked_sub(END) else {
        return Err("is too short to be a zip archive".into());
    };
    // The end record is followed by a comment of at most 64 KiB.
    let end = (last.saturating_sub(0xffff)..=last)
        .rev()
        .find(|&at| bytes[at..].starts_with(b"PK\x05\x06"))
        .ok_or("is not a zip archive")?;
    let mut count = number::<2>(bytes, end + 10)?;
    let mut directory = number::<4>(bytes, end + 16)?;
    // PyTorch writes the 64-bit form always: a locator before the end record points at it.
    if let Some(locator) = end.checked_sub(20)
        && bytes[locator..].starts_with(b"PK\x06\x07")
    {
        let record = usize::try_from(number::<8>(bytes, locator + 8)?).map_err(|e| e.to_string())?;
        if !bytes.get(record..).is_some_and(|b| b.starts_with(b"PK\x06\x06")) {
            return Err("its zip64 locator points at nothing".into());
        }
        count = number::<8>(bytes, record + 32)?;
        directory = number::<8>(bytes, record + 48)?;
    }
    let mut at = usize::try_from(directory).map_err(|e| e.to_string())?;
    let mut members = HashMap::new();
    for _ in 0..count {
        if number::<4>(bytes, at)? != 0x0201_4b50 {
            return Err(format!("has no directory entry at byte {at}"));
        }
        let (flags, method) = (number::<2>(bytes, at + 8)?, number::<2>(bytes, at + 10)?);
        let (packed, size) = (number::<4>(bytes, at + 20)?, number::<4>(bytes, at + 24)?);
        let lengths = [28, 30, 32].map(|field| number::<2>(bytes, at + field).map(|n| n as usize));
        let [name_len, extra_len, comment_len] = lengths;
        let (name_len, extra_len, comment_len) = (name_len?, extra_len?, comment_len?);
        let local = number::<4>(bytes, at + 42)?;
        let name = bytes.get(at + 46..at + 46 + name_len).ok_or("ends within a name")?;
        let name = std::str::from_utf8(name).map_err(|e| format!("a member's name is not UTF-8: {e}"))?;
        let extra = at + 46 + name_len..at + 46 + name_len + extra_len;
        let extra = bytes.get(extra).ok_or("ends within a directory entry")?;
        let [size, packed, local] = wide(extra, [size, packed, local])?;
        if method != 0 || packed != size || flags & 1 != 0 {
            return Err(format!("member {name:?} is compressed or encrypted"));
        }
        let local = usize::try_from(local).map_err(|e| e.to_string())?;
        if number::<4>(bytes, local)? != 0x0403_4b50 {
            return Err(format!("member {name:?} has no header at byte {local}"));
        }
        let skip = 30 + number::<2>(bytes, local + 26)? as usize + number::<2>(bytes, local + 28)? as usize;
        let start = local + skip;
        let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size));
        let Some(end) = end.filter(|&end| end <= bytes.len()) else {
            return Err(format!("member {name:?} reaches beyond the end of the file"));
        };
        if members.insert(name.to_owned(), start..end).is_some() {
            return Err(format!("member {name:?} is there twice"));
        }
        at += 46 + name_len + extra_len + comment_len;
    }
    Ok(members)
}

/// Size, packed size and offset, with those that are all ones taken from the zip64 field of `extra`, in that order.
fn wide(extra: &[u8], mut values: [u64; 3]) -> std::result::Result<[u64; 3], String> {
    const ALL_ONES: u64 = 0xffff_ffff;
    if !values.contains(&ALL_ONES) {
        return Ok(values);
    }
    let mut at = 0;
    while at + 4 <= extra.len() {
        let (kind, len) = (number::<2>(extra, at)?, number::<2>(extra, at + 2)? as usize);
        if kind == 1 {
            let mut from = at + 4;
            for value in values.iter_mut().filter(|v| **v == ALL_ONES) {
                *value = number::<8>(extra, from)?;
                from += 8;
            }
            return Ok(values);
        }
        at += 4 + len;
    }
    Err("a large member lacks its zip64 sizes".into())
}

/// What a global stands for. Nothing else is accepted, and none of these is code here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

fn global(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
        ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
        ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
        ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
        ("torch", "LongStorage") => Global::Storage(Dtype::I64),
        ("torch", "IntStorage") => Global::Storage(Dtype::I32),
        // Listed and measured, but their data is not read.
        ("torch", "ShortStorage") => Global::Storage(Dtype::from_name("I16")?),
        ("torch", "CharStorage") => Global::Storage(Dtype::from_name("I8")?),
        ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
        ("torch", "BoolStorage") => Global::Storage(Dtype::Bool),
        _ => return None,
    })
}

/// A value on the stack. Compound ones are indices into the machine, so that nesting costs no recursion anywhere.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    /// What no tensor is made of, but stands beside the weights in training checkpoints: floats and lists.
    Opaque,
    None,
    Bool,
    Int(i64),
    Str(&'a str),
    Tuple(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

struct Storage<'a> {
    dtype: Dtype,
    key: &'a str,
    elements: usize,
}

struct TensorRecord {
    storage: usize,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

struct Refusal {
    rule: String,
    hint: &'static str,
}

impl From<String> for Refusal {
    fn from(rule: String) -> Self {
        Self { rule, hint: DAMAGED }
    }
}

impl From<&str> for Refusal {
    fn from(rule: &str) -> Self {
        rule.to_owned().into()
    }
}

type Step<T> = std::result::Result<T, Refusal>;

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack where marks were set.
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    tuples: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<Storage<'a>>,
    tensors: Vec<TensorRecord>,
}

impl<'a> Machine<'a> {
    fn new(code: &'a [u8]) -> Self {
        Self {
            code,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            tuples: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.code.len());
        let end = end.ok_or("ends within an instruction")?;
        let part = &self.code[self.at..end];
        self.at = end;
        Ok(part)
    }

    fn count<const N: usize>(&mut self) -> Step<u64> {
        Ok(self.take(N)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn text(&mut self, n: usize) -> Step<&'a str> {
        std::str::from_utf8(self.take(n)?).map_err(|e| format!("a text is not UTF-8: {e}").into())
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.code[self.at..];
        let n = rest.iter().position(|&b| b == b'\n').ok_or("ends within a name")?;
        let line = self.text(n)?;
        self.at += 1;
        Ok(line)
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        // Below the last mark there is nothing to pop for a single value.
        if self.marks.last().is_some_and(|&m| self.stack.len() <= m) {
            return Err("takes a value from below a mark".into());
        }
        self.stack
            .pop()
            .ok_or_else(|| "takes a value from an empty stack".into())
    }

    /// Everything above the last mark.
    fn above_mark(&mut self) -> Step<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or("looks for a mark that was not set")?;
        Ok(self.stack.split_off(mark))
    }

    fn push_tuple(&mut self, items: Vec<Value<'a>>) {
        self.tuples.push(items);
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn popped_tuple(&mut self, n: usize) -> Step<()> {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push_tuple(items);
        Ok(())
    }

    fn find_global(&mut self, module: &str, name: &str) -> Step<()> {
        match global(module, name) {
            Some(known) => {
                self.stack.push(Value::Global(known));
                Ok(())
            }
            None => Err(Refusal {
                rule: format!("asks for {module:?} {name:?}"),
                hint: if module == "torch" || module.starts_with("torch.") {
                    STRANGE
                } else {
                    UNSAFE
                },
            }),
        }
    }

    /// Runs to STOP; one value is left.
    fn run(&mut self) -> Step<()> {
        loop {
            let at = self.at;
            let op = self.take(1)?[0];
            match op {
                // PROTO, FRAME: what follows needs neither.
                0x80 => {
                    let protocol = self.count::<1>()?;
                    if !(2..=5).contains(&protocol) {
                        return Err(format!("protocol {protocol} is not read").into());
                    }
                }
                0x95 => {
                    self.count::<8>()?;
                }
                b'.' => return Ok(()),
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => {
                    let n = self.count::<1>()?;
                    self.stack.push(Value::Int(n as i64));
                }
                b'M' => {
                    let n = self.count::<2>()?;
                    self.stack.push(Value::Int(n as i64));
                }
                b'J' => {
                    let n = self.count::<4>()?;
                    self.stack.push(Value::Int(i64::from(n as u32 as i32)));
                }
                0x8a => {
                    let n = self.count::<1>()? as usize;
                    let bytes = self.take(n)?;
                    if n > 8 {
                        return Err(format!("a number has {n} bytes").into());
                    }
                    // Two's complement, little-endian, of any length.
                    let sign = bytes.last().is_some_and(|b| b & 0x80 != 0);
                    let mut wide = [if sign { 0xff } else { 0 }; 8];
                    wide[..n].copy_from_slice(bytes);
                    self.stack.push(Value::Int(i64::from_le_bytes(wide)));
                }
                b'X' => {
                    let n = self.count::<4>()? as usize;
                    let text = self.text(n)?;
                    self.stack.push(Value::Str(text));
                }
                0x8c => {
                    let n = self.count::<1>()? as usize;
                    let text = self.text(n)?;
                    self.stack.push(Value::Str(text));
                }
                b'G' => {
                    self.count::<8>()?;
                    self.stack.push(Value::Opaque);
                }
                b']' => self.stack.push(Value::Opaque),
                b'a' => {
                    self.pop()?;
                    self.on_list()?;
                }
                b'e' => {
                    self.above_mark()?;
                    self.on_list()?;
                }
                b')' => self.push_tuple(Vec::new()),
                b't' => {
                    let items = self.above_mark()?;
                    self.push_tuple(items);
                }
                0x85..=0x87 => self.popped_tuple(usize::from(op - 0x84))?,
                b'}' => self.push_dict(),
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.above_mark()?;
                    self.set_items(&items)?;
                }
                b'q' => {
                    let key = self.count::<1>()?;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.count::<4>()?;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => {
                    let key = self.count::<1>()?;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.count::<4>()?;
                    self.recall(key)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.find_global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Str(module), Value::Str(name)) = (module, name) else {
                        return Err("names a global by something that is no text".into());
                    };
                    self.find_global(module, name)?;
                }
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                // BUILD: attributes of a dictionary (`_metadata`), which are no tensors.
                b'b' => {
                    self.pop()?;
                    let Some(Value::Dict(_)) = self.stack.last() else {
                        return Err("gives attributes to something that is no dictionary".into());
                    };
                }
                other => {
                    return Err(Refusal {
                        rule: format!("instruction 0x{other:02x} at byte {at} is none that tensors need"),
                        hint: UNSAFE,
                    });
                }
            }
        }
    }

    fn remember(&mut self, key: u64) -> Step<()> {
        let top = *self.stack.last().ok_or("remembers a value that is not there")?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Step<()> {
        let value = *self.memo.get(&key).ok_or("recalls a value that was not remembered")?;
        self.stack.push(value);
        Ok(())
    }

    fn on_list(&self) -> Step<()> {
        match self.stack.last() {
            Some(Value::Opaque) => Ok(()),
            _ => Err("adds to something that is no list".into()),
        }
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Step<()> {
        let Some(Value::Dict(dict)) = self.stack.last() else {
            return Err("sets an item of something that is no dictionary".into());
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("sets a key without a value".into());
        }
        self.dicts[*dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    /// `('storage', TYPE, key, location, elements)` becomes a storage.
    fn storage(&mut self) -> Step<()> {
        let Value::Tuple(id) = self.pop()? else {
            return Err("refers to a storage by something that is no tuple".into());
        };
        let [
            Value::Str("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Str(key),
            Value::Str(_),
            Value::Int(elements),
        ] = self.tuples[id][..]
        else {
            return Err("refers to something that is no storage".into());
        };
        let elements = usize::try_from(elements).map_err(|_| "a storage has a negative size")?;
        self.storages.push(Storage { dtype, key, elements });
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    fn reduce(&mut self) -> Step<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(id), Value::Global(function)) = (arguments, function) else {
            return Err("calls something that is no global".into());
        };
        let arguments = &self.tuples[id];
        match (function, &arguments[..]) {
            (Global::OrderedDict, []) => self.push_dict(),
            (Global::RebuildParameter, [Value::Tensor(tensor), ..]) => {
                let tensor = Value::Tensor(*tensor);
                self.stack.push(tensor);
            }
            (
                Global::RebuildTensor,
                [
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Tuple(shape),
                    Value::Tuple(stride),
                    ..,
                ],
            ) => {
                let offset = usize::try_from(*offset).map_err(|_| "a tensor has a negative offset")?;
                let storage = *storage;
                let (shape, stride) = (self.sizes(*shape)?, self.sizes(*stride)?);
                if shape.len() != stride.len() {
                    return Err("a tensor has more dimensions than strides, or fewer".into());
                }
                self.tensors.push(TensorRecord {
                    storage,
                    offset,
                    shape,
                    stride,
                });
                self.stack.push(Value::Tensor(self.tensors.len() - 1));
            }
            (function, _) => return Err(format!("calls {function:?} with arguments it does not take").into()),
        }
        Ok(())
    }

    fn sizes(&self, tuple: usize) -> Step<Vec<usize>> {
        let items = &self.tuples[tuple];
        if items.len() > MAX_DIMS {
            return Err(format!("a tensor has {} dimensions", items.len()).into());
        }
        let size = |value: &Value<'_>| match value {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        let sizes: Option<Vec<usize>> = items.iter().map(size).collect();
        sizes.ok_or_else(|| "a dimension is no whole number from 0".into())
    }

    /// The tensors of the dictionary that was left; a training checkpoint may hold it under `state_dict` or `model`. The
    /// `module.` that PyTorch's data parallelism puts before every name is taken away.
    fn named(&self) -> Step<Vec<(String, &TensorRecord)>> {
        let Some(&Value::Dict(mut dict)) = self.stack.last() else {
            return Err("leaves no dictionary".into());
        };
        for key in ["state_dict", "model"] {
            let inner = self.dicts[dict].iter().find_map(|(k, v)| match (k, v) {
                (Value::Str(k), Value::Dict(d)) if *k == key => Some(*d),
                _ => None,
            });
            if let Some(inner) = inner {
                dict = inner;
                break;
            }
        }
        let wrapped = |key: &Value<'_>| matches!(key, Value::Str(name) if name.starts_with("module."));
        let wrapped = self.dicts[dict].iter().all(|(key, _)| wrapped(key));
        let pairs = self.dicts[dict].iter();
        let named = pairs.map(|(key, value)| match (key, value) {
            (Value::Str(name), Value::Tensor(t)) => {
                let name = if wrapped { &name["module.".len()..] } else { name };
                Ok((name.to_owned(), &self.tensors[*t]))
            }
            (Value::Str(name), _) => Err(Refusal::from(format!("{name:?} is no tensor"))),
            _ => Err("a key is no text".into()),
        });
        named.collect()
    }
}
