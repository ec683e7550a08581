//! A cache in which some layers keep what their attention method wants instead of all keys and values.

use crate::{
    cache::{Cache, Kept, KvCache},
    error::{ModelError, Result},
};
use ounce_tensor::Tensor;

/// What one layer keeps when its attention method does not want plainly all keys and values.
pub trait LayerCache: Send {
    /// Tokens seen.
    fn len(&self) -> usize;
    /// Has it seen no token?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Why it cannot forget everything from position `to` on, if it cannot.
    fn cannot_truncate(&self, to: usize) -> Option<String>;
    /// Forgets all tokens from position `to` on; only called when [`LayerCache::cannot_truncate`] has no objection.
    fn truncate(&mut self, to: usize);
    /// A copy.
    fn snapshot(&self) -> Box<dyn LayerCache>;
    /// Bytes held.
    fn bytes(&self) -> usize;
    /// The method's own type.
    fn as_any(&mut self) -> &mut dyn std::any::Any;
}

enum Layer {
    /// This layer's place among the plain ones.
    Plain(usize),
    Own(Box<dyn LayerCache>),
}

/// Plain layers, and layers of methods that keep their own.
pub struct MixedCache {
    plain: KvCache,
    layers: Vec<Layer>,
}

impl MixedCache {
    /// One entry per layer: what its method keeps, or none if it is plain. `plain` is the cache of the plain layers.
    pub fn new(own: Vec<Option<Box<dyn LayerCache>>>, plain: KvCache) -> Self {
        let mut count = 0;
        let layers = own
            .into_iter()
            .map(|own| {
                if let Some(own) = own {
                    return Layer::Own(own);
                }
                count += 1;
                Layer::Plain(count - 1)
            })
            .collect();
        Self { plain, layers }
    }

    fn plain(&self, layer: usize) -> Result<usize> {
        match self.layers.get(layer) {
            Some(Layer::Plain(place)) => Ok(*place),
            Some(Layer::Own(_)) => Err(ModelError::Cache(format!(
                "layer {layer} keeps its own keys and values"
            ))),
            None => Err(ModelError::Cache(format!("layer {layer} of {}", self.layers.len()))),
        }
    }

    fn own(&self) -> impl Iterator<Item = &dyn LayerCache> {
        self.layers.iter().filter_map(|l| match l {
            Layer::Own(own) => Some(&**own),
            Layer::Plain(_) => None,
        })
    }
}

impl Cache for MixedCache {
    fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        let place = self.plain(layer)?;
        self.plain.append(place, keys, values)
    }

    fn read(&self, layer: usize) -> Result<Kept<'_>> {
        self.plain.read(self.plain(layer)?)
    }

    fn len(&self) -> usize {
        let own = self.own().map(LayerCache::len).min();
        let plain = (self.own().count() < self.layers.len()).then(|| self.plain.len());
        own.into_iter().chain(plain).min().unwrap_or(0)
    }

    fn truncate(&mut self, to: usize) -> Result<()> {
        if to > self.len() {
            return Err(ModelError::Cache(format!(
                "cannot truncate {} tokens to {to}",
                self.len()
            )));
        }
        // All or none: a refusal must leave the cache as it was.
        let any_plain = self.own().count() < self.layers.len();
        let plain = any_plain.then(|| self.plain.cannot_truncate(to)).flatten();
        if let Some(why) = self.own().find_map(|own| own.cannot_truncate(to)).or(plain) {
            return Err(ModelError::Cache(why));
        }
        for layer in &mut self.layers {
            if let Layer::Own(own) = layer {
                own.truncate(to);
            }
        }
        if any_plain {
            self.plain.truncate(to)?;
        }
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Cache> {
        let layers = self.layers.iter().map(|l| match l {
            Layer::Plain(place) => Layer::Plain(*place),
            Layer::Own(own) => Layer::Own(own.snapshot()),
        });
        Box::new(Self {
            plain: self.plain.clone(),
            layers: layers.collect(),
        })
    }

    fn bytes(&self) -> usize {
        self.plain.bytes() + self.own().map(LayerCache::bytes).sum::<usize>()
    }

    fn own_layer(&mut self, layer: usize) -> Option<&mut dyn LayerCache> {
        match self.layers.get_mut(layer)? {
            Layer::Own(own) => Some(&mut **own),
            Layer::Plain(_) => None,
        }
    }
}
