//! The attention slot. Each method that can fill it has one file here.

pub(crate) mod attend;
pub mod dga;
mod full;
pub mod moh;

use crate::{
    cache::CacheType,
    config::{Keys, ModelConfig},
    ctx::Ctx,
    error::{ModelError, Result},
    layer_cache::LayerCache,
    param::Param,
    weights::Weights,
};
use ounce_tensor::Tensor;
use serde::Serialize;
use serde_json::{Map, Value};
use std::{fmt::Debug, sync::Arc};

pub use full::FullAttention;

/// What fills the attention slot of a block.
pub trait Attention: Send + Sync {
    /// Mixes the tokens of each sequence: normalised input `x [N,D]` to a partial sum `[N,D]`.
    ///
    /// # Errors
    /// If shapes do not fit or the cache refuses.
    fn forward(&self, x: &Tensor, ctx: &mut Ctx<'_>) -> Result<Tensor>;
    /// Visits every parameter, in checkpoint order.
    fn visit(&mut self, f: &mut dyn FnMut(&mut Param));
    /// Is a prompt that is read piece by piece through a cache the same to it as one read at once?
    fn reads_in_pieces(&self) -> bool {
        true
    }
    /// What the layer keeps of a sequence, as values of this type, if that is not plainly all keys and values.
    fn layer_cache(&self, _kind: CacheType) -> Option<Box<dyn LayerCache>> {
        None
    }
}

/// An attention method as a configuration names it: checked when the configuration was read, it can build its layers and
/// say what it costs.
pub trait Method: Debug + Send + Sync {
    /// The configuration key that holds it.
    fn key(&self) -> &'static str;
    /// One line for people: the settings that decide its numbers.
    fn describe(&self) -> String;
    /// Fills the slot of layer `layer`.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    fn build(&self, config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn Attention>>;
    /// What it costs and saves with `context` tokens in the cache, beside full attention of the same shape. `element`:
    /// bytes of a cached value.
    fn costs(&self, config: &ModelConfig, context: usize, element: usize) -> Vec<Cost>;
    /// Do a token's logits depend on later tokens (when a whole text is run at once)?
    fn looks_ahead(&self) -> bool {
        false
    }
}

/// One quantity with and without a method.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Cost {
    /// What is counted, with its unit.
    pub what: String,
    /// In full attention.
    pub full: f64,
    /// With the method.
    pub method: f64,
    /// How it follows from the configuration.
    pub formula: &'static str,
}

/// Reads a method's key.
type Configure = fn(&Keys<'_>, &ModelConfig) -> Result<Arc<dyn Method>>;

/// The attention methods, by configuration key. This is the one list to edit when a method is added.
const METHODS: &[(&str, Configure)] = &[("moh", moh::configure), ("dga", dga::configure)];

/// Is `key` the configuration key of an attention method?
pub(crate) fn is_method(key: &str) -> bool {
    METHODS.iter().any(|(k, _)| *k == key)
}

/// The keys of all methods.
pub fn method_keys() -> Vec<&'static str> {
    METHODS.iter().map(|(key, _)| *key).collect()
}

/// The method that a configuration asks for, if any. `config` is complete but for it.
pub(crate) fn configure(keys: &Keys<'_>, config: &ModelConfig) -> Result<Option<Arc<dyn Method>>> {
    let asked: Vec<&(&str, Configure)> = METHODS.iter().filter(|(key, _)| keys.get(key).is_some()).collect();
    match asked[..] {
        [] => Ok(None),
        [(method, configure)] => configure(keys, config).map(Some).map_err(|e| within(method, keys, e)),
        [(first, _), (second, _), ..] => keys.bad(second, format!("cannot be combined with \"{first}\"")),
    }
}

/// The error, with the method's name before a key that stands below it.
fn within(method: &str, keys: &Keys<'_>, error: ModelError) -> ModelError {
    match error {
        ModelError::Config { file, key, rule, hint } if keys.get(method).is_some_and(|m| m.get(&key).is_some()) => {
            ModelError::Config {
                key: format!("{method}.{key}"),
                file,
                rule,
                hint,
            }
        }
        other => other,
    }
}

/// The configuration `json` with another attention method: `dga`, `dga:group_size=8,selection=causal_block` (values as
/// in JSON, bare words are strings), or `full` for exact attention. What a checkpoint was trained with can be taken away
/// only if it has no weights of its own and selects no heads: `moh` stays.
///
/// # Errors
/// If the method is unknown or a setting is no `key=value`; values are checked when the configuration is parsed.
pub fn overridden(json: &Value, spec: &str) -> Result<Value> {
    let fail = |rule: String, hint: String| {
        Err(ModelError::Input {
            what: "attention".into(),
            rule,
            hint,
        })
    };
    let mut json = json.clone();
    let Some(map) = json.as_object_mut() else {
        return fail("the configuration is not an object".into(), String::new());
    };
    let (name, settings) = spec.split_once(':').unwrap_or((spec, ""));
    let keeps = |map: &Map<String, Value>, key: &str| map.get(key).is_some_and(|v| !v.is_null());
    if keeps(map, "moh") && name != "moh" {
        return fail(
            format!("\"{name}\" cannot replace the mixture of heads this checkpoint was trained with"),
            "leave --attention out".into(),
        );
    }
    if name != "full" && !is_method(name) {
        return fail(
            format!("\"{name}\" is not an attention method"),
            format!("known: full, {}", method_keys().join(", ")),
        );
    }
    let mut object = Map::new();
    // Commas inside a list part no settings.
    let mut open = 0i32;
    let between = |c: char| {
        open += i32::from(c == '[') - i32::from(c == ']');
        c == ',' && open <= 0
    };
    for setting in settings.split(between).filter(|s| !s.is_empty()) {
        let Some((key, value)) = setting.split_once('=').filter(|_| name != "full") else {
            return fail(
                format!("\"{setting}\" is not a setting"),
                "for example --attention dga:group_size=8,group_bias=entropy".into(),
            );
        };
        let value = serde_json::from_str(value.trim()).unwrap_or_else(|_| Value::from(value.trim()));
        object.insert(key.trim().to_owned(), value);
    }
    for key in method_keys() {
        map.remove(key);
    }
    if name != "full" {
        map.insert(name.to_owned(), Value::Object(object));
    }
    Ok(json)
}

/// Fills the slot of layer `layer`.
///
/// # Errors
/// If a weight is missing or has the wrong shape.
pub fn build(config: &ModelConfig, layer: usize, weights: &mut dyn Weights) -> Result<Box<dyn Attention>> {
    match &config.attention {
        Some(method) => method.build(config, layer, weights),
        None => Ok(Box::new(FullAttention::new(config, layer, weights)?)),
    }
}
