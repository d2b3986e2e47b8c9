//! Who we are to a cluster that wants to know it over HTTP: by Kerberos ("SPNEGO", RFC 4559).
//!
//! [`Login`] is the whole seam. [`Kerberos`] gets its words from the system's own library for Kerberos, which is loaded when it
//! is first needed, and knows where the tickets of the worker's user are (`KRB5CCNAME`, or the keytab of
//! `KRB5_CLIENT_KTNAME`, with which it gets them by itself).
//!
//! This module must not ask a cluster anything.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libloading::{Library, Symbol};

/// Who we are, to a server that wants to know it.
pub trait Login: Send + Sync + fmt::Debug {
    /// What stands behind `Negotiate` in a question to the server on `host`. Good for one question. May block.
    ///
    /// # Errors
    /// Why there is nothing to show, in words.
    fn token(&self, host: &str) -> Result<String, String>;
}

/// The tickets of the worker's user.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kerberos;

impl Login for Kerberos {
    fn token(&self, host: &str) -> Result<String, String> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| {
            // SAFETY: the system's own library; nothing but its own initialisers runs, which need nothing of this program.
            unsafe { Library::new(LIBRARY_NAME) }
                .map_err(|error| format!("the library for Kerberos cannot be loaded ({error})"))
        });
        let library = library.as_ref().map_err(Clone::clone)?;
        first_token(library, host).map(|token| STANDARD.encode(token))
    }
}

/// Where Debian and RHEL have it, as `libgssapi-krb5-2` and `krb5-libs`.
const LIBRARY_NAME: &str = "libgssapi_krb5.so.2";

/// A text of the library's, with its length.
#[repr(C)]
struct Buffer {
    length: usize,
    value: *mut c_void,
}

impl Buffer {
    const EMPTY: Self = Self { length: 0, value: ptr::null_mut() };

    /// The bytes, copied.
    fn bytes(&self) -> Vec<u8> {
        if self.value.is_null() {
            return Vec::new();
        }
        // SAFETY: the library has said that so many bytes are there, and they live until the buffer is released.
        unsafe { std::slice::from_raw_parts(self.value.cast::<u8>(), self.length) }.to_vec()
    }
}

/// The name of a thing that the library knows.
#[repr(C)]
struct Oid {
    length: u32,
    elements: *const c_void,
}

/// The name of a service on a host (`GSS_C_NT_HOSTBASED_SERVICE`).
const SERVICE: [u8; 10] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 0x01, 0x02, 0x01, 0x04];
/// SPNEGO.
const SPNEGO: [u8; 6] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x02];
/// The bits of an answer that say that it failed.
const FAILED: u32 = 0xffff_0000;
/// What a status is about, for its words.
const OF_THE_LIBRARY: c_int = 1;
const OF_THE_MECHANISM: c_int = 2;

type ImportName = unsafe extern "C" fn(*mut u32, *const Buffer, *const Oid, *mut *mut c_void) -> u32;
type ReleaseName = unsafe extern "C" fn(*mut u32, *mut *mut c_void) -> u32;
type ReleaseBuffer = unsafe extern "C" fn(*mut u32, *mut Buffer) -> u32;
type DeleteContext = unsafe extern "C" fn(*mut u32, *mut *mut c_void, *mut Buffer) -> u32;
type DisplayStatus = unsafe extern "C" fn(*mut u32, u32, c_int, *const Oid, *mut u32, *mut Buffer) -> u32;
type InitContext = unsafe extern "C" fn(
    *mut u32,
    *mut c_void,
    *mut *mut c_void,
    *mut c_void,
    *const Oid,
    u32,
    u32,
    *mut c_void,
    *const Buffer,
    *mut *mut c_void,
    *mut Buffer,
    *mut u32,
    *mut u32,
) -> u32;

fn oid(bytes: &'static [u8]) -> Oid {
    Oid { length: u32::try_from(bytes.len()).unwrap_or(0), elements: bytes.as_ptr().cast() }
}

/// A function of the library.
///
/// # Safety
/// It has to have this type.
unsafe fn function<'a, T>(library: &'a Library, name: &str) -> Result<Symbol<'a, T>, String> {
    // SAFETY: handed on to the caller.
    unsafe { library.get(name.as_bytes()) }
        .map_err(|error| format!("the library for Kerberos has no {name} ({error})"))
}

/// The first token of a context with the service `HTTP` on a host.
fn first_token(library: &Library, host: &str) -> Result<Vec<u8>, String> {
    // SAFETY: these are the types of RFC 2744, as the headers of the library have them.
    let (import_name, release_name, release_buffer, delete_context, init_context, display_status) = unsafe {
        (
            function::<ImportName>(library, "gss_import_name")?,
            function::<ReleaseName>(library, "gss_release_name")?,
            function::<ReleaseBuffer>(library, "gss_release_buffer")?,
            function::<DeleteContext>(library, "gss_delete_sec_context")?,
            function::<InitContext>(library, "gss_init_sec_context")?,
            function::<DisplayStatus>(library, "gss_display_status")?,
        )
    };
    let words = |status: u32, minor: u32| {
        let mut said = Vec::new();
        for (code, kind) in [(status, OF_THE_LIBRARY), (minor, OF_THE_MECHANISM)] {
            let (mut more, mut again, mut text) = (0, 0, Buffer::EMPTY);
            // SAFETY: every pointer is to something of this frame; the text is released below.
            unsafe { display_status(&raw mut more, code, kind, ptr::null(), &raw mut again, &raw mut text) };
            said.push(String::from_utf8_lossy(&text.bytes()).trim_end_matches(['.', '\0']).to_owned());
            // SAFETY: it is a text of the library's, or empty.
            unsafe { release_buffer(&raw mut more, &raw mut text) };
        }
        said.join(": ")
    };
    let service = format!("HTTP@{host}");
    let named = Buffer { length: service.len(), value: service.as_ptr().cast_mut().cast() };
    let (mut minor, mut name) = (0, ptr::null_mut());
    let kind = oid(&SERVICE);
    // SAFETY: every pointer is to something of this frame, which the library only reads but for the name.
    let status = unsafe { import_name(&raw mut minor, &raw const named, &raw const kind, &raw mut name) };
    if status & FAILED != 0 {
        return Err(words(status, minor));
    }
    let (mut context, mut token, mechanism) = (ptr::null_mut(), Buffer::EMPTY, oid(&SPNEGO));
    // SAFETY: the same; no credentials and no bindings are named, and what the library makes is released below.
    let status = unsafe {
        init_context(
            &raw mut minor,
            ptr::null_mut(),
            &raw mut context,
            name,
            &raw const mechanism,
            0,
            0,
            ptr::null_mut(),
            ptr::null(),
            ptr::null_mut(),
            &raw mut token,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    let result = if status & FAILED == 0 { Ok(token.bytes()) } else { Err(words(status, minor)) };
    let mut ignored = 0;
    // SAFETY: each is what the library made, or null, and is not used any more.
    unsafe {
        release_buffer(&raw mut ignored, &raw mut token);
        delete_context(&raw mut ignored, &raw mut context, ptr::null_mut());
        release_name(&raw mut ignored, &raw mut name);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_no_ticket_is_told_so_in_the_words_of_kerberos() {
        // A machine without the library says that; one with it, that there is no ticket for this.
        let words = Kerberos.token("nowhere.invalid").unwrap_err();
        assert!(!words.is_empty() && !words.contains('\0'), "{words:?}");
    }
}
