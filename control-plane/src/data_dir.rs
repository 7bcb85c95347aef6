//! The data directory: what must survive a restart, written whole or not at all.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

/// The layout of the directory that this program reads and writes.
pub const LAYOUT: u32 = 1;
/// Names the layout.
const VERSION_FILE: &str = "VERSION";
/// Locked for as long as a process uses the directory.
const LOCK_FILE: &str = "LOCK";

/// A data directory in use by this process. Dropping it lets others use it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("data directory {}: {reason}", path.display())]
pub struct DataDirError {
    path: PathBuf,
    reason: String,
}

impl DataDir {
    /// Takes a directory into use, making it if it is not there. Blocks.
    ///
    /// # Errors
    ///
    /// It is not writable, is used by another process, or was written by a newer version of this
    /// program.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let fail = |reason: String| DataDirError {
            path: path.to_owned(),
            reason,
        };
        fs::create_dir_all(path).map_err(|e| fail(format!("cannot be made: {e}")))?;
        let lock = File::create(path.join(LOCK_FILE))
            .map_err(|e| fail(format!("is not writable: {e}")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(fail("is used by another process".into()));
            }
            Err(TryLockError::Error(e)) => return Err(fail(format!("cannot be locked: {e}"))),
        }
        let dir = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        let version = dir
            .read(VERSION_FILE)
            .map_err(|e| fail(format!("{VERSION_FILE} cannot be read: {e}")))?;
        let Some(version) = version else {
            dir.write(VERSION_FILE, format!("{LAYOUT}\n").as_bytes())
                .map_err(|e| fail(format!("is not writable: {e}")))?;
            return Ok(dir);
        };
        let text = String::from_utf8_lossy(&version);
        match text.trim().parse::<u32>() {
            Ok(LAYOUT) => Ok(dir),
            Ok(newer) if newer > LAYOUT => Err(fail(format!(
                "was written by a newer version (layout {newer}, this program knows {LAYOUT})"
            ))),
            _ => {
                let told: String = text.trim().chars().take(40).collect();
                Err(fail(format!("{VERSION_FILE} holds {told:?}, not a layout")))
            }
        }
    }

    /// Where a part of this process keeps files of its own, under a name that nobody else uses.
    pub fn part(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What a file holds; `None` when there is none. Blocks.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Replaces a file: a reader, or a restart after a crash, sees the old one or the new one.
    /// Blocks until it is on disk.
    ///
    /// # Errors
    ///
    /// The system's error; the old file is as it was.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = self.path.join(format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// Leaves a file in a data directory that another process may be using, for its owner's eyes only.
    /// Blocks until it is on disk.
    ///
    /// # Errors
    ///
    /// The system's error, or it is no data directory.
    pub fn leave(path: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        let owner = fs::metadata(path.join(VERSION_FILE)).map_err(|error| {
            let told = format!("{} is no data directory in use: {error}", path.display());
            io::Error::new(error.kind(), told)
        })?;
        let new = path.join(format!("{name}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        if file.metadata()?.uid() != owner.uid() {
            // An administrator of the machine leaves it for the user whom the program runs as.
            chown(&new, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.sync_all()?;
        fs::rename(&new, path.join(name))?;
        File::open(path)?.sync_all()
    }

    /// The names of its files, in no order. Blocks.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    /// Removes a file, if it is there. Blocks.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Renames a file that is damaged, so that the operator may look at it.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn set_aside(&self, name: &str) -> io::Result<PathBuf> {
        let aside = self.path.join(format!("{name}.damaged"));
        fs::rename(self.path.join(name), &aside)?;
        Ok(aside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_kept_and_used_by_one() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let dir = DataDir::open(&path).unwrap();
        assert_eq!(dir.read("x").unwrap(), None);
        dir.write("x", b"1").unwrap();
        dir.write("x", b"2").unwrap();
        assert_eq!(dir.read("x").unwrap().unwrap(), b"2");
        let error = DataDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("a/b: is used by another process"), "{error}");
        drop(dir);
        let dir = DataDir::open(&path).unwrap();
        assert_eq!(dir.read("x").unwrap().unwrap(), b"2");
        assert!(dir.set_aside("x").unwrap().exists());
        assert_eq!(dir.read("x").unwrap(), None);
        dir.write("y", b"3").unwrap();
        let mut names = dir.names().unwrap();
        names.sort();
        assert_eq!(names, ["LOCK", "VERSION", "x.damaged", "y"]);
        dir.remove("y").unwrap();
        dir.remove("y").unwrap();
        assert_eq!(dir.read("y").unwrap(), None);
    }

    #[test]
    fn what_is_left_there_is_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let error = DataDir::leave(parent.path(), "x", b"1").unwrap_err();
        assert!(error.to_string().contains("no data directory"), "{error}");
        let dir = DataDir::open(parent.path()).unwrap();
        DataDir::leave(parent.path(), "x", b"1").unwrap();
        fs::write(parent.path().join("x.new"), "cut off").unwrap();
        DataDir::leave(parent.path(), "x", b"2").unwrap();
        assert_eq!(dir.read("x").unwrap().unwrap(), b"2");
        let mode = fs::metadata(parent.path().join("x")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[test]
    fn an_unusable_directory_is_refused_with_the_reason() {
        let parent = tempfile::tempdir().unwrap();
        for (version, told) in [
            (
                "2\n",
                "was written by a newer version (layout 2, this program knows 1)",
            ),
            ("", "holds \"\", not a layout"),
            ("sled", "holds \"sled\", not a layout"),
        ] {
            fs::write(parent.path().join(VERSION_FILE), version).unwrap();
            let error = DataDir::open(parent.path()).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
            assert!(error.contains(parent.path().to_str().unwrap()), "{error}");
        }
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::open(&file).unwrap_err().to_string();
        assert!(error.contains("cannot be made"), "{error}");
        // Not even root may write here.
        let error = DataDir::open(Path::new("/proc/cdn"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/proc/cdn: cannot be made"), "{error}");
    }
}
