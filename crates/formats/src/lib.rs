//! Files: checkpoints as they lie on disk, and output folders that are whole or not there.
//!
//! This crate owns the bytes and the names. It exists so that every other crate can ask for "the tensor of this name" and
//! be sure that what it gets was checked against the file it came from, and so that no command ever leaves a half-written
//! result under the name its user asked for. It must not know what a model is: no layer, no family, no configuration key
//! is named here.
//!
//! Reading: [`Checkpoint`] (a Hugging Face folder) over [`SafetensorsFile`] (one file, safetensors or
//! weights-only [`torch`]), and [`Gguf`] (one file or its parts), all memory-mapped.
//! Writing: [`OutputFolder`] (lock, mark, journal, rename at the end) around [`ShardedWriter`] (bounded memory, resumable);
//! an [`Identity`] and [`Inputs`] say what a job is, so that it is continued with nothing else; [`SideFiles`] is what a
//! checkpoint made of another takes with it.

#[cfg(target_endian = "big")]
compile_error!("checkpoints are little-endian and are used in place; big-endian machines are not supported");

pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod fsx;
pub mod gguf;
pub mod identity;
pub mod inputs;
pub mod lock;
pub mod output;
pub mod safetensors;
pub mod sharded;
pub mod side_files;
pub mod torch;
pub mod view;
pub mod writer;

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use error::{FormatError, Result};
pub use gguf::Gguf;
pub use identity::Identity;
pub use inputs::{Inputs, Summing};
pub use lock::FolderLock;
pub use output::{Begun, Output, OutputFolder, Overwrite, Resume, check_output_file};
pub use safetensors::SafetensorsFile;
pub use sharded::{ShardOptions, ShardedWriter};
pub use side_files::SideFiles;
pub use view::{Region, TensorView};
pub use writer::{SafetensorsWriter, TensorSpec, as_bytes, write_file};
