//! Reads a golden folder: expectations, checkpoint and `case.json`.

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) json: serde_json::Value,
    expected: Vec<u8>,
    model: Vec<u8>,
}

/// The three matrices of an expert.
pub(crate) struct Weights {
    pub(crate) gate: Vec<f32>,
    pub(crate) up: Vec<f32>,
    pub(crate) down: Vec<f32>,
}

impl Weights {
    pub(crate) fn flat(&self) -> Vec<f32> {
        [self.gate.as_slice(), &self.up, &self.down].concat()
    }
}

impl Case {
    pub(crate) fn open(name: &'static str) -> Self {
        let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", name].iter().collect();
        let json = std::fs::read(folder.join("case.json")).unwrap();
        Self {
            name,
            json: serde_json::from_slice(&json).unwrap(),
            expected: std::fs::read(folder.join("expected.safetensors")).unwrap(),
            // The clustering case has points instead of a model.
            model: std::fs::read(folder.join("model/model.safetensors")).unwrap_or_default(),
        }
    }

    fn values<T, const N: usize>(
        bytes: &[u8],
        name: &str,
        dtype: Dtype,
        from: fn([u8; N]) -> T,
    ) -> (Vec<usize>, Vec<T>) {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(view.dtype(), dtype, "{name}");
        let (items, rest) = view.data().as_chunks::<N>();
        assert!(rest.is_empty());
        (view.shape().to_vec(), items.iter().map(|&item| from(item)).collect())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.expected).unwrap();
        file.names().into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn f64(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        Self::values(&self.expected, name, Dtype::F64, f64::from_le_bytes)
    }

    pub(crate) fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        Self::values(&self.expected, name, Dtype::F32, f32::from_le_bytes)
    }

    /// Integers, one vector per row of the first axis.
    pub(crate) fn rows(&self, name: &str) -> Vec<Vec<usize>> {
        let (shape, flat) = Self::values(&self.expected, name, Dtype::I64, i64::from_le_bytes);
        let flat: Vec<usize> = flat.into_iter().map(|v| usize::try_from(v).unwrap()).collect();
        flat.chunks_exact(flat.len() / shape[0])
            .map(<[usize]>::to_vec)
            .collect()
    }

    /// Floats, one vector per row of the first axis.
    pub(crate) fn f32_rows(&self, name: &str) -> Vec<Vec<f32>> {
        let (shape, flat) = self.f32(name);
        flat.chunks_exact(flat.len() / shape[0]).map(<[f32]>::to_vec).collect()
    }

    pub(crate) fn usage(&self) -> Vec<Vec<u64>> {
        self.rows("usage_counts")
            .into_iter()
            .map(|row| row.into_iter().map(|v| v as u64).collect())
            .collect()
    }

    pub(crate) fn number(&self, key: &str) -> usize {
        usize::try_from(self.json[key].as_u64().unwrap()).unwrap()
    }

    /// Group counts for which the case stores something like `prefix.r{r}`.
    pub(crate) fn counts(&self, prefix: &str) -> Vec<usize> {
        let stem = format!("{prefix}.r");
        let found: Vec<usize> = self
            .names()
            .iter()
            .filter_map(|name| name.strip_prefix(&stem))
            .filter_map(|r| r.parse().ok())
            .collect();
        assert!(!found.is_empty(), "{}: nothing named {stem}*", self.name);
        found
    }

    pub(crate) fn layers(&self) -> usize {
        self.json["moe_layers"].as_array().unwrap().len()
    }

    /// All experts of the `layer`-th MoE layer.
    pub(crate) fn experts(&self, layer: usize) -> Vec<Weights> {
        let at = self.json["moe_layers"][layer].as_u64().unwrap();
        let (block, gate, up, down) = match self.json["arch"].as_str() {
            Some("mixtral") => ("block_sparse_moe", "w1", "w3", "w2"),
            _ => ("mlp", "gate_proj", "up_proj", "down_proj"),
        };
        let read = |expert: usize, name: &str| {
            let name = format!("model.layers.{at}.{block}.experts.{expert}.{name}.weight");
            Self::values(&self.model, &name, Dtype::F32, f32::from_le_bytes).1
        };
        (0..self.number("experts"))
            .map(|e| Weights {
                gate: read(e, gate),
                up: read(e, up),
                down: read(e, down),
            })
            .collect()
    }
}
