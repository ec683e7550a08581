//! What a pickle of tensors is made of: the few globals that are known, storages, tensors, tuples and dictionaries. The
//! objects live side by side and refer to each other by index.

use super::refusal::{Refusal, STRANGE, Step, UNSAFE};
use crate::dtype::Dtype;
use std::collections::HashMap;

/// Dimensions of a tensor.
const MAX_DIMS: usize = 16;

/// What a global stands for. Nothing else is accepted, and none of these is code here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// A type, a device, a size: settings beside the weights, which no tensor is made of.
    Setting,
    Storage(Dtype),
}

/// The global of that name.
pub(super) fn global(module: &str, name: &str) -> Step<Global> {
    known(module, name).ok_or_else(|| Refusal {
        rule: format!("asks for {module:?} {name:?}"),
        hint: if module == "torch" || module.starts_with("torch.") {
            STRANGE
        } else {
            UNSAFE
        },
    })
}

fn known(module: &str, name: &str) -> Option<Global> {
    // Old files name the storages of a GPU; where they lay does not matter.
    let module = if module == "torch.cuda" { "torch" } else { module };
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::RebuildParameter,
        (
            "torch",
            "Size" | "device" | "float32" | "float64" | "float16" | "bfloat16" | "int64" | "int32" | "int16" | "int8"
            | "uint8" | "bool",
        ) => Global::Setting,
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

/// A value on the stack. Compound ones are indices into [`Objects`], so that nesting costs no recursion anywhere.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// What no tensor is made of, but stands beside the weights in training checkpoints.
    Opaque,
    None,
    Bool(bool),
    Int(i64),
    Str(&'a str),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// The flat array that tensors are parts of.
pub(super) struct Storage<'a> {
    pub(super) dtype: Dtype,
    /// Its member of the archive: `data/KEY`.
    pub(super) key: &'a str,
    pub(super) elements: usize,
}

/// A tensor as the pickle describes it; offset and strides count elements.
pub(super) struct TensorRecord {
    storage: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// All compound objects of a pickle.
#[derive(Default)]
pub(super) struct Objects<'a> {
    tuples: Vec<Vec<Value<'a>>>,
    lists: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<Storage<'a>>,
    by_key: HashMap<&'a str, usize>,
    tensors: Vec<TensorRecord>,
}

impl<'a> Objects<'a> {
    pub(super) fn tuple(&mut self, items: Vec<Value<'a>>) -> Value<'a> {
        self.tuples.push(items);
        Value::Tuple(self.tuples.len() - 1)
    }

    pub(super) fn list(&mut self) -> Value<'a> {
        self.lists.push(Vec::new());
        Value::List(self.lists.len() - 1)
    }

    /// Adds to the list `target`.
    pub(super) fn append(&mut self, target: Option<&Value<'a>>, items: &[Value<'a>]) -> Step<()> {
        let Some(Value::List(list)) = target else {
            return Err("adds to something that is no list".into());
        };
        self.lists[*list].extend(items);
        Ok(())
    }

    pub(super) fn dict(&mut self) -> Value<'a> {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    /// Keys and values in turn, for the dictionary `target`.
    pub(super) fn set_items(&mut self, target: Option<&Value<'a>>, items: &[Value<'a>]) -> Step<()> {
        let Some(Value::Dict(dict)) = target else {
            return Err("sets an item of something that is no dictionary".into());
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("sets a key without a value".into());
        }
        self.dicts[*dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    /// `('storage', TYPE, key, location, elements)` becomes a storage. Before PyTorch 1.6 there is a sixth part, a view of
    /// another storage, which has not been written since 0.4.
    pub(super) fn storage(&mut self, id: Value<'a>) -> Step<Value<'a>> {
        let Value::Tuple(id) = id else {
            return Err("refers to a storage by something that is no tuple".into());
        };
        let ([
            Value::Str("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Str(key),
            Value::Str(_),
            Value::Int(elements),
        ]
        | [
            Value::Str("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Str(key),
            Value::Str(_),
            Value::Int(elements),
            Value::None,
        ]) = self.tuples[id][..]
        else {
            return Err("refers to something that is no storage".into());
        };
        let elements = usize::try_from(elements).map_err(|_| "a storage has a negative size")?;
        self.by_key.insert(key, self.storages.len());
        self.storages.push(Storage { dtype, key, elements });
        Ok(Value::Storage(self.storages.len() - 1))
    }

    /// What `function` would make of `arguments`.
    pub(super) fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Step<Value<'a>> {
        let (Value::Tuple(id), Value::Global(function)) = (arguments, function) else {
            return Err("calls something that is no global".into());
        };
        match (function, &self.tuples[id][..]) {
            (Global::OrderedDict, []) => Ok(self.dict()),
            (Global::Setting, _) => Ok(Value::Opaque),
            (Global::RebuildParameter, [Value::Tensor(tensor), ..]) => Ok(Value::Tensor(*tensor)),
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
                Ok(Value::Tensor(self.tensors.len() - 1))
            }
            (function, _) => Err(format!("calls {function:?} with arguments it does not take").into()),
        }
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

    /// The array a tensor is part of.
    pub(super) fn storage_of(&self, tensor: &TensorRecord) -> &Storage<'a> {
        &self.storages[tensor.storage]
    }

    /// The tensor number `index`.
    pub(super) fn tensor(&self, index: usize) -> &TensorRecord {
        &self.tensors[index]
    }

    /// Keys and values of the dictionary number `index`, in the order they were set.
    pub(super) fn items(&self, index: usize) -> &[(Value<'a>, Value<'a>)] {
        &self.dicts[index]
    }

    /// A storage of that key.
    pub(super) fn storage_by_key(&self, key: &str) -> Option<&Storage<'a>> {
        self.by_key.get(key).map(|&index| &self.storages[index])
    }

    /// What the dictionary `root` says of `key`, if that is yes or no.
    pub(super) fn flag(&self, root: Option<&Value<'a>>, key: &str) -> Option<bool> {
        let Some(Value::Dict(dict)) = root else { return None };
        self.dicts[*dict].iter().find_map(|(k, v)| match (k, v) {
            (Value::Str(k), Value::Bool(flag)) if *k == key => Some(*flag),
            _ => None,
        })
    }

    /// The list `root`, if it is one of texts.
    pub(super) fn texts(&self, root: Option<&Value<'a>>) -> Option<Vec<&'a str>> {
        let Some(Value::List(list)) = root else { return None };
        let text = |value: &Value<'a>| match value {
            Value::Str(text) => Some(*text),
            _ => None,
        };
        self.lists[*list].iter().map(text).collect()
    }
}
