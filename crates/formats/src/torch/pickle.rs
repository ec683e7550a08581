//! The pickle machine: the few instructions that dictionaries of tensors need, and no others.

use super::{
    objects::{Objects, Value, global},
    refusal::{Refusal, Step, UNSAFE},
};
use std::collections::HashMap;

/// A pickle that was run.
pub(super) struct Pickled<'a> {
    pub(super) objects: Objects<'a>,
    /// The value it leaves.
    pub(super) left: Option<Value<'a>>,
    /// Its bytes; more may follow.
    pub(super) length: usize,
}

/// Runs the pickle that `code` begins with to its end.
pub(super) fn run(code: &[u8]) -> Step<Pickled<'_>> {
    let mut machine = Machine {
        code,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        objects: Objects::default(),
    };
    machine.run()?;
    Ok(Pickled {
        left: machine.stack.pop(),
        length: machine.at,
        objects: machine.objects,
    })
}

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack where marks were set.
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    objects: Objects<'a>,
}

impl<'a> Machine<'a> {
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

    fn popped_tuple(&mut self, n: usize) -> Step<()> {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        let tuple = self.objects.tuple(items);
        self.stack.push(tuple);
        Ok(())
    }

    /// Runs to STOP.
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
                0x88 | 0x89 => self.stack.push(Value::Bool(op == 0x88)),
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
                // The latter are texts of Python 2.
                0x8c | b'U' => {
                    let n = self.count::<1>()? as usize;
                    let text = self.text(n)?;
                    self.stack.push(Value::Str(text));
                }
                // Bytes, which are never weights.
                b'C' => {
                    let n = self.count::<1>()? as usize;
                    self.take(n)?;
                    self.stack.push(Value::Opaque);
                }
                b'B' => {
                    let n = self.count::<4>()? as usize;
                    self.take(n)?;
                    self.stack.push(Value::Opaque);
                }
                b'G' => {
                    self.count::<8>()?;
                    self.stack.push(Value::Opaque);
                }
                b']' => {
                    let list = self.objects.list();
                    self.stack.push(list);
                }
                b'a' => {
                    let item = self.pop()?;
                    self.objects.append(self.stack.last(), &[item])?;
                }
                b'e' => {
                    let items = self.above_mark()?;
                    self.objects.append(self.stack.last(), &items)?;
                }
                b')' => {
                    let empty = self.objects.tuple(Vec::new());
                    self.stack.push(empty);
                }
                b't' => {
                    let items = self.above_mark()?;
                    let tuple = self.objects.tuple(items);
                    self.stack.push(tuple);
                }
                0x85..=0x87 => self.popped_tuple(usize::from(op - 0x84))?,
                b'}' => {
                    let dict = self.objects.dict();
                    self.stack.push(dict);
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.objects.set_items(self.stack.last(), &[key, value])?;
                }
                b'u' => {
                    let items = self.above_mark()?;
                    self.objects.set_items(self.stack.last(), &items)?;
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
                    self.stack.push(Value::Global(global(module, name)?));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Str(module), Value::Str(name)) = (module, name) else {
                        return Err("names a global by something that is no text".into());
                    };
                    self.stack.push(Value::Global(global(module, name)?));
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.objects.storage(id)?;
                    self.stack.push(storage);
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let made = self.objects.call(function, arguments)?;
                    self.stack.push(made);
                }
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
}
