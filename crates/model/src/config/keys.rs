//! Typed access to the keys of a `config.json`, with errors that name file, key, rule and value.

use super::refuse;
use crate::error::Result;
use serde_json::{Map, Value};

/// The keys of one configuration.
pub(crate) struct Keys<'a> {
    pub(crate) file: &'a str,
    pub(crate) map: &'a Map<String, Value>,
}

/// The hint where a file says what no file should.
pub(super) const DAMAGED: &str = "the file may be damaged, or made for another program";

impl<'a> Keys<'a> {
    /// The value of `key`; absent and `null` are the same.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn bad<T>(&self, key: &str, rule: impl Into<String>) -> Result<T> {
        refuse(self.file, key, rule, DAMAGED)
    }

    /// A whole number in `range`, if present.
    pub(crate) fn count(&self, key: &str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().map(|v| v as usize) {
            Some(v) if range.contains(&v) => Ok(Some(v)),
            _ => self.bad(
                key,
                format!(
                    "must be a whole number in {}..={}, is {value}",
                    range.start(),
                    range.end()
                ),
            ),
        }
    }

    /// A whole number from 1 that must be there.
    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        // 2^31: larger sizes overflow the products below and exist in no model.
        match self.count(key, 1..=1 << 31)? {
            Some(v) => Ok(v),
            None => self.bad(key, "is missing"),
        }
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => self.bad(key, format!("must be true or false, is {other}")),
        }
    }

    /// A finite number, if present.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => self.bad(key, format!("must be a finite number, is {v}")),
            },
        }
    }

    /// A finite number above 0, or the default.
    pub(crate) fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.number(key)? {
            None => Ok(default),
            Some(x) if x > 0.0 => Ok(x),
            Some(x) => self.bad(key, format!("must be above 0, is {x}")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => self.bad(key, format!("must be a string, is {other}")),
        }
    }

    pub(crate) fn counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value
            .as_array()
            .and_then(|a| a.iter().map(|v| v.as_u64().map(|v| v as usize)).collect());
        match list {
            Some(list) => Ok(Some(list)),
            None => self.bad(key, format!("must be a list of whole numbers, is {value}")),
        }
    }

    /// The object under `key`, whose keys must all be `known`; its errors name `key.inner`.
    pub(crate) fn object(&self, key: &str, known: &[&str]) -> Result<Option<&'a Map<String, Value>>> {
        let map = match self.get(key) {
            None => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(other) => return self.bad(key, format!("must be an object, is {other}")),
        };
        match map.keys().find(|k| !known.contains(&k.as_str())) {
            None => Ok(Some(map)),
            Some(unknown) => refuse(
                self.file,
                &format!("{key}.{unknown}"),
                "is unknown; it might change what the model computes",
                format!("known: {}", known.join(", ")),
            ),
        }
    }

    /// One id or a list of ids.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let one = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => match list.iter().map(one).collect() {
                Some(ids) => Ok(ids),
                None => self.bad(key, "must be ids"),
            },
            Some(v) => match one(v) {
                Some(id) => Ok(vec![id]),
                None => self.bad(key, format!("must be an id or a list of ids, is {v}")),
            },
        }
    }
}
