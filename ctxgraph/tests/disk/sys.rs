//! A VFS of SQLite that does what the system's does, and keeps a log of every write, cut, sync and deletion.
#![expect(unsafe_code, reason = "sqlite3_vfs and sqlite3_io_methods are tables of C functions")]

use rusqlite::ffi;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard};

/// One thing that was done to a file.
#[derive(Debug, Clone)]
pub enum Op {
    Write {
        file: String,
        offset: u64,
        bytes: Vec<u8>,
    },
    Cut {
        file: String,
        length: u64,
    },
    Sync {
        file: String,
    },
    Delete {
        file: String,
    },
    /// Not of the disk: the transaction of this number was acknowledged.
    Acknowledged(usize),
}

static LOG: Mutex<Vec<Op>> = Mutex::new(Vec::new());
static RECORDS: AtomicBool = AtomicBool::new(false);
static SYSTEM: AtomicPtr<ffi::sqlite3_vfs> = AtomicPtr::new(std::ptr::null_mut());

fn log() -> MutexGuard<'static, Vec<Op>> {
    LOG.lock().unwrap()
}

/// Adds to the log, while it is kept.
pub fn record(op: Op) {
    if RECORDS.load(Ordering::SeqCst) {
        log().push(op);
    }
}

/// Begins a log.
pub fn begin() {
    log().clear();
    RECORDS.store(true, Ordering::SeqCst);
}

/// Ends the log and returns it.
pub fn end() -> Vec<Op> {
    RECORDS.store(false, Ordering::SeqCst);
    std::mem::take(&mut log())
}

/// Makes it what every connection opened from now on uses. Once in a process.
pub fn install() {
    // SAFETY: sqlite3_vfs_find(null) returns the default VFS, which lives as long as the process; it is copied while nobody changes
    // it. The copy and its name are leaked, as sqlite3_vfs_register demands.
    unsafe {
        let system = ffi::sqlite3_vfs_find(std::ptr::null());
        SYSTEM.store(system, Ordering::SeqCst);
        let mut vfs = *system;
        vfs.szOsFile += size_of::<Recorded>() as c_int;
        vfs.zName = CString::new("recorded").unwrap().into_raw();
        vfs.pNext = std::ptr::null_mut();
        vfs.xOpen = Some(open);
        vfs.xDelete = Some(delete);
        assert_eq!(ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 1), ffi::SQLITE_OK);
    }
}

/// What SQLite takes for its file: the system's own file lies behind it.
#[repr(C)]
struct Recorded {
    methods: *const ffi::sqlite3_io_methods,
    /// Its name, boxed; null for files without one.
    name: *mut String,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

type File = *mut ffi::sqlite3_file;

/// The system's file behind ours.
///
/// SAFETY: `file` was opened by [`open`], so szOsFile bytes of the system's file follow a `Recorded`.
unsafe fn real(file: File) -> File {
    unsafe { file.byte_add(size_of::<Recorded>()) }
}

/// SAFETY: as [`real`]; the system's file is open, so its table is there, and it is of version 2 at least.
unsafe fn table(file: File) -> &'static ffi::sqlite3_io_methods {
    unsafe { &*(*real(file)).pMethods }
}

/// SAFETY: as [`real`].
unsafe fn name(file: File) -> String {
    unsafe { (*file.cast::<Recorded>()).name.as_ref().cloned().unwrap_or_default() }
}

fn last_part(path: &CStr) -> String {
    let path = path.to_string_lossy();
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: File,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let system = SYSTEM.load(Ordering::SeqCst);
    // SAFETY: SQLite hands over szOsFile bytes, ours and the system's; the path is null or a C string that outlives the file.
    unsafe {
        let recorded = file.cast::<Recorded>();
        (*recorded).methods = std::ptr::null();
        let rc = (*system).xOpen.unwrap()(system, path, real(file), flags, out);
        if rc == ffi::SQLITE_OK {
            (*recorded).name = if path.is_null() {
                std::ptr::null_mut()
            } else {
                Box::into_raw(Box::new(last_part(CStr::from_ptr(path))))
            };
            (*recorded).methods = &METHODS;
        }
        rc
    }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, path: *const c_char, durable: c_int) -> c_int {
    let system = SYSTEM.load(Ordering::SeqCst);
    // SAFETY: SQLite hands over a C string.
    unsafe {
        record(Op::Delete { file: last_part(CStr::from_ptr(path)) });
        (*system).xDelete.unwrap()(system, path, durable)
    }
}

// SAFETY of all below: SQLite calls them with a file that `open` opened, and with arguments as the system's functions want them.
unsafe extern "C" fn close(file: File) -> c_int {
    unsafe {
        let rc = table(file).xClose.unwrap()(real(file));
        let name = (*file.cast::<Recorded>()).name;
        if !name.is_null() {
            drop(Box::from_raw(name));
        }
        rc
    }
}
unsafe extern "C" fn read(file: File, out: *mut c_void, count: c_int, offset: i64) -> c_int {
    unsafe { table(file).xRead.unwrap()(real(file), out, count, offset) }
}
unsafe extern "C" fn write(file: File, from: *const c_void, count: c_int, offset: i64) -> c_int {
    unsafe {
        let bytes = std::slice::from_raw_parts(from.cast::<u8>(), count as usize).to_vec();
        record(Op::Write { file: name(file), offset: offset as u64, bytes });
        table(file).xWrite.unwrap()(real(file), from, count, offset)
    }
}
unsafe extern "C" fn truncate(file: File, length: i64) -> c_int {
    unsafe {
        record(Op::Cut { file: name(file), length: length as u64 });
        table(file).xTruncate.unwrap()(real(file), length)
    }
}
unsafe extern "C" fn sync(file: File, flags: c_int) -> c_int {
    unsafe {
        let rc = table(file).xSync.unwrap()(real(file), flags);
        record(Op::Sync { file: name(file) });
        rc
    }
}
unsafe extern "C" fn file_size(file: File, out: *mut i64) -> c_int {
    unsafe { table(file).xFileSize.unwrap()(real(file), out) }
}
unsafe extern "C" fn lock(file: File, level: c_int) -> c_int {
    unsafe { table(file).xLock.unwrap()(real(file), level) }
}
unsafe extern "C" fn unlock(file: File, level: c_int) -> c_int {
    unsafe { table(file).xUnlock.unwrap()(real(file), level) }
}
unsafe extern "C" fn check_reserved_lock(file: File, out: *mut c_int) -> c_int {
    unsafe { table(file).xCheckReservedLock.unwrap()(real(file), out) }
}
unsafe extern "C" fn file_control(file: File, what: c_int, argument: *mut c_void) -> c_int {
    unsafe { table(file).xFileControl.unwrap()(real(file), what, argument) }
}
unsafe extern "C" fn sector_size(file: File) -> c_int {
    unsafe { table(file).xSectorSize.unwrap()(real(file)) }
}
/// None of the system's promises (a write that is not torn, an order of writes) holds on the disk that the tests simulate.
unsafe extern "C" fn device_characteristics(_: File) -> c_int {
    0
}
unsafe extern "C" fn shm_map(
    file: File,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    unsafe { table(file).xShmMap.unwrap()(real(file), region, bytes, extend, out) }
}
unsafe extern "C" fn shm_lock(file: File, offset: c_int, count: c_int, flags: c_int) -> c_int {
    unsafe { table(file).xShmLock.unwrap()(real(file), offset, count, flags) }
}
unsafe extern "C" fn shm_barrier(file: File) {
    unsafe { table(file).xShmBarrier.unwrap()(real(file)) }
}
unsafe extern "C" fn shm_unmap(file: File, delete: c_int) -> c_int {
    unsafe { table(file).xShmUnmap.unwrap()(real(file), delete) }
}
