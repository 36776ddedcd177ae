//! The directory of the state: its place, its lock, and the files of a set of tables.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FlockOperation, FsWord, OFlags, flock, statfs};
use rustix::process::geteuid;

use crate::flow::memory::TableMemory;
use crate::flow::table::{FlowTable, TableError};
use crate::format::reason;
use crate::net::TableSecret;
use crate::xdp::memory::{Arena, HUGE_PAGE, MappingError, Pages};

/// `f_type` of statfs(2).
const TMPFS: FsWord = 0x0102_1994;
const HUGETLBFS: FsWord = 0x9584_58f6;
/// Longest registry that is read, in bytes: the largest configuration takes some 20 MiB.
const MAX_REGISTRY: u64 = 256 << 20;
/// Mount point of hugetlbfs on Debian (systemd's dev-hugepages.mount).
const HUGE: &str = "/dev/hugepages/holdfast";

/// Reason why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A directory cannot be made or used.
    #[error("{}: {reason}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason, with the remedy.
        reason: String,
    },
    /// Another process uses the directory.
    #[error(
        "{} is in use by another holdfast; stop it, or set another [state] directory",
        .0.display()
    )]
    InUse(PathBuf),
}

/// The directory of one instance. No other process uses it as long as the value lives.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Directory for flow tables on pages of the huge page pool, if there is one.
    huge: Option<PathBuf>,
    lock: File,
    /// Whether the process that hands the directory over still writes the tables.
    is_live: bool,
}

impl Directory {
    /// Opens the directory of the instance with this control socket, made if it does not exist.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(parent: &Path, socket: &Path) -> Result<Self, StateError> {
        Self::with(parent, socket, None)
    }

    /// Opens the directory of a running process, which has passed its lock to this one. Its tables
    /// are taken over as they are, or not at all.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn adopt(parent: &Path, socket: &Path, lock: OwnedFd) -> Result<Self, StateError> {
        Self::with(parent, socket, Some(lock))
    }

    fn with(parent: &Path, socket: &Path, locked: Option<OwnedFd>) -> Result<Self, StateError> {
        let name = instance(socket);
        let path = parent.join(&name);
        let error = |path: &Path, reason| StateError::Directory { path: path.to_owned(), reason };
        make_parent(parent).map_err(|reason| error(parent, reason))?;
        make_private(&path).map_err(|reason| error(&path, reason))?;
        let kind = statfs(&path).map(|found| found.f_type).map_err(io::Error::from);
        let error = |reason| error(&path, reason);
        let kind = kind.map_err(|cause| error(reason(&cause)))?;
        if kind != TMPFS {
            let what = "not in memory (tmpfs); use a directory in /dev/shm";
            return Err(error(what.to_owned()));
        }
        let is_live = locked.is_some();
        let lock = match locked {
            Some(lock) => File::from(lock),
            None => {
                let lock = private_file().create(true).truncate(false).open(path.join("lock"));
                let lock = lock.map_err(|cause| error(reason(&cause)))?;
                if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                    return Err(StateError::InUse(path));
                }
                lock
            }
        };
        let huge = huge_pages().and_then(|parent| {
            let path = parent.join(&name);
            make_parent(&parent).and_then(|()| make_private(&path)).ok().map(|()| path)
        });
        Ok(Self { path, huge, lock, is_live })
    }

    /// Returns a copy of the lock for another process: the directory is locked until both copies are
    /// closed.
    ///
    /// # Errors
    /// Too many open files.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        self.lock.try_clone().map(OwnedFd::from)
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the registry that was written last; `None` if there is none.
    ///
    /// # Errors
    /// Text for the operator.
    pub fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let path = self.path.join("registry");
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(reason(&error)),
            Ok(found) if found.len() > MAX_REGISTRY => return Err("too large".to_owned()),
            Ok(_) => {}
        }
        fs::read(path).map(Some).map_err(|error| reason(&error))
    }

    /// Replaces the registry, all or nothing. If that fails, the earlier one is removed, too: it
    /// does not know the indices that are in use now.
    ///
    /// # Errors
    /// Text for the operator.
    pub fn write(&self, bytes: &[u8]) -> Result<(), String> {
        let (path, new) = (self.path.join("registry"), self.path.join("registry.new"));
        let written = private_file()
            .create(true)
            .truncate(true)
            .open(&new)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(&new);
            format!("{}: {}", path.display(), reason(&error))
        })
    }

    /// The files that belong to no set.
    pub fn common(&self) -> Set<'_> {
        Set { directory: self, name: String::new(), refused: Mutex::default() }
    }

    /// The files of a set of tables.
    pub fn set(&self, number: u32) -> Set<'_> {
        Set { directory: self, name: format!("tables.{number}"), refused: Mutex::default() }
    }

    /// Removes all sets of tables but one.
    pub fn keep_only(&self, number: u32) {
        self.remove_sets(Some(number));
    }

    fn remove_sets(&self, kept: Option<u32>) {
        let kept = kept.map(|number| format!("tables.{number}"));
        for place in self.places() {
            for entry in fs::read_dir(place).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if Some(&name) != kept.as_ref() && name.starts_with("tables.") {
                    // A leftover is only memory; the next start tries again.
                    let _ = fs::remove_dir_all(entry.path());
                }
            }
        }
    }

    /// Removes everything: for a process whose tables are not here, so that no later process finds
    /// what it does not know.
    pub fn clear(&self) {
        let _ = fs::remove_file(self.path.join("registry"));
        let _ = fs::remove_file(self.path.join("qinq"));
        self.remove_sets(None);
    }

    fn places(&self) -> impl Iterator<Item = &PathBuf> {
        self.huge.iter().chain([&self.path])
    }
}

/// The files of a set of tables, or those that belong to no set.
#[derive(Debug)]
pub struct Set<'d> {
    directory: &'d Directory,
    /// Name of its directory; empty: the instance's own.
    name: String,
    /// Files that cannot be used, with the reasons.
    refused: Mutex<Vec<String>>,
}

impl Set<'_> {
    /// Returns the files that could not be used since the last call, with the reasons.
    pub fn refused(&self) -> Vec<String> {
        std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the flow table that the earlier process has left for a worker, free to be written;
    /// records why it cannot be used.
    pub(super) fn flows(&self, worker: usize, secret: &TableSecret) -> Option<FlowTable> {
        let name = flows_of(worker);
        let found = match self.found(&name) {
            Some(arena) => FlowTable::attach(arena),
            None => Err(TableError::NotATable),
        };
        let found = found.and_then(|table| match table.secret().seed() == secret.seed() {
            true => Ok(table),
            false => Err(TableError::OtherSet),
        });
        match found {
            Ok(table) => {
                if !self.directory.is_live {
                    table.release_writer();
                }
                Some(table)
            }
            Err(error) => {
                self.refuse(&name, &error);
                None
            }
        }
    }

    fn create(&self, place: &Path, name: &str, bytes: usize) -> io::Result<Arc<Arena>> {
        let directory = place.join(&self.name);
        make_private(&directory).map_err(io::Error::other)?;
        let path = directory.join(name);
        // A process may still map the old file: it is replaced, not emptied.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file: OwnedFd = private_file().create_new(true).open(&path)?.into();
        Arena::in_file(file, bytes).map_err(|error| {
            let _ = fs::remove_file(&path);
            io::Error::other(error)
        })
    }
}

impl TableMemory for Set<'_> {
    fn found(&self, name: &str) -> Option<Arc<Arena>> {
        let mut paths = self.directory.places().map(|place| place.join(&self.name).join(name));
        paths.find_map(|path| {
            let file = private_file().open(path).ok()?;
            let facts = file.metadata().ok()?;
            let ours = facts.uid() == geteuid().as_raw() && facts.mode() & 0o077 == 0;
            (ours && facts.is_file() && facts.len() > 0)
                .then(|| Arena::of_file(file.into()).ok())
                .flatten()
        })
    }

    fn fresh(&self, name: &str, bytes: usize, pages: Pages) -> Result<Arc<Arena>, MappingError> {
        let Directory { path, huge, is_live, .. } = self.directory;
        let refused = |source| MappingError::Refused { bytes, source };
        let mut places = self.directory.places();
        // A table that the running process does not know is in no process's way.
        if *is_live && places.any(|place| place.join(&self.name).join(name).exists()) {
            let what = format!("the running process has another table {name}");
            return Err(refused(io::Error::other(what)));
        }
        let place = match pages {
            Pages::Pool => {
                huge.as_ref().ok_or_else(|| refused(io::ErrorKind::Unsupported.into()))?
            }
            Pages::Ordinary => {
                // An attempt on huge pages, which failed when it was populated.
                if let Some(huge) = huge {
                    let _ = fs::remove_file(huge.join(&self.name).join(name));
                }
                path
            }
        };
        self.create(place, name, bytes).map_err(refused)
    }

    fn is_live(&self) -> bool {
        self.directory.is_live
    }

    fn refuse(&self, name: &str, error: &TableError) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.push(format!("{name}: {error}"));
    }
}

/// Name of the directory of the instance with this control socket.
fn instance(socket: &Path) -> String {
    socket.to_string_lossy().trim_start_matches('/').replace('/', "-")
}

/// Path of the socket by which the instance with this control socket hands over.
pub fn hand_over_socket(parent: &Path, socket: &Path) -> PathBuf {
    parent.join(instance(socket)).join("handover")
}

/// Name of the flow table of a worker.
pub(super) fn flows_of(worker: usize) -> String {
    format!("flows-{worker}")
}

/// Options of a file that only its owner reads and writes, and that is no link.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    options.read(true).write(true).mode(0o600).custom_flags(flags.bits().cast_signed());
    options
}

/// Makes a directory that only its owner may use; one that exists must be of this kind.
fn make_private(path: &Path) -> Result<(), String> {
    let found = make(path)?;
    if found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err("other users may use it; remove it, or chmod 700".to_owned());
    }
    Ok(())
}

/// Makes the directory of all instances, if it does not exist. No other user may be able to replace
/// what is in it.
fn make_parent(path: &Path) -> Result<(), String> {
    let found = make(path)?;
    let (uid, mode) = (found.uid(), found.mode());
    let sticky = mode & 0o1000 != 0;
    if ![0, geteuid().as_raw()].contains(&uid) || (mode & 0o022 != 0 && !sticky) {
        return Err(
            "another user may replace what is in it; remove it, or chown and chmod 700".to_owned()
        );
    }
    Ok(())
}

fn make(path: &Path) -> Result<fs::Metadata, String> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(reason(&error)),
        _ => {}
    }
    let found = fs::symlink_metadata(path).map_err(|error| reason(&error))?;
    if found.is_dir() { Ok(found) } else { Err("it is not a directory".to_owned()) }
}

/// Returns the directory for huge pages, if hugetlbfs is mounted with pages of [`HUGE_PAGE`].
fn huge_pages() -> Option<PathBuf> {
    let path = PathBuf::from(HUGE);
    let found = statfs(path.parent()?).ok()?;
    let fits =
        found.f_type == HUGETLBFS && u64::try_from(found.f_bsize).ok() == Some(HUGE_PAGE as u64);
    fits.then_some(path)
}
