//! GGUF files written byte by byte, right or wrong.

/// A file in the making.
#[derive(Clone, Default)]
pub(super) struct Build {
    pub(super) version: Option<u32>,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    pub(super) alignment: usize,
}

pub(super) fn text(s: &str) -> Vec<u8> {
    let mut bytes = (s.len() as u64).to_le_bytes().to_vec();
    bytes.extend(s.as_bytes());
    bytes
}

impl Build {
    pub(super) fn new() -> Self {
        Self {
            alignment: 32,
            ..Self::default()
        }
    }

    /// A key whose value of type `kind` is `value`, as it lies in the file.
    pub(super) fn key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
        let mut bytes = text(name);
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
        self.keys.push(bytes);
        self
    }

    pub(super) fn text(self, name: &str, value: &str) -> Self {
        self.key(name, 8, &text(value))
    }

    pub(super) fn u32(self, name: &str, value: u32) -> Self {
        self.key(name, 4, &value.to_le_bytes())
    }

    pub(super) fn array(self, name: &str, kind: u32, len: u64, values: &[u8]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(values);
        self.key(name, 9, &bytes)
    }

    pub(super) fn texts(self, name: &str, values: &[&str]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| text(v)).collect();
        self.array(name, 8, values.len() as u64, &bytes)
    }

    /// A tensor of type `kind` with its fastest dimension first, as the format lists them.
    pub(super) fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, bytes: &[u8]) -> Self {
        self.tensors
            .push((name.to_owned(), dimensions.to_vec(), kind, bytes.to_vec()));
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.bytes_with(&|_, offset| offset)
    }

    /// As [`Build::bytes`], with other offsets than the right ones.
    pub(super) fn bytes_with(&self, offset: &dyn Fn(usize, u64) -> u64) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.unwrap_or(3).to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        let mut at = 0u64;
        for (i, (name, dimensions, kind, bytes)) in self.tensors.iter().enumerate() {
            out.extend(text(name));
            out.extend((dimensions.len() as u32).to_le_bytes());
            for d in dimensions {
                out.extend(d.to_le_bytes());
            }
            out.extend(kind.to_le_bytes());
            out.extend(offset(i, at).to_le_bytes());
            at = (at + bytes.len() as u64).next_multiple_of(self.alignment as u64);
        }
        for (_, _, _, bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(bytes);
        }
        out
    }
}
