//! Files for tests: each in a directory of its own, gone with the value.

use std::path::{Path, PathBuf};

pub(crate) struct Scratch {
    directory: PathBuf,
    path: PathBuf,
}

impl Scratch {
    /// A file of the name `file` with this content.
    pub(crate) fn file(content: impl AsRef<[u8]>) -> Scratch {
        Scratch::named("file", content)
    }

    pub(crate) fn named(name: &str, content: impl AsRef<[u8]>) -> Scratch {
        let directory = std::env::temp_dir().join(format!("uringcast-test-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&directory).expect("a new directory in the temporary one");
        let path = directory.join(name);
        std::fs::write(&path, content).expect("a new file");
        Scratch { directory, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
