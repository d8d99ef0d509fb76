//! The allocator: the system's, and a sentence of our own where it has nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

use super::process::abort_now;

/// The system's allocator. Where it has no memory the process ends by abort(3) after one sentence, also where the
/// caller could have gone on: reading a file asks with `try_reserve`, and then allocates to say that it failed.
pub struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// What the allocator has given, unless there is nothing.
fn had(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() {
        out_of_memory(bytes);
    }
    memory
}

#[cold]
fn out_of_memory(bytes: usize) -> ! {
    let mut sentence = [0; 160];
    let mut rest = &mut sentence[..];
    let _ = writeln!(
        rest,
        "autodriver: cannot allocate {bytes} bytes: give this machine or its container more memory"
    );
    let left = rest.len();
    let _ = nix::unistd::write(std::io::stderr(), &sentence[..sentence.len() - left]);
    abort_now()
}

// SAFETY: memory is the system's allocator's; where that has none, nothing is returned.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        had(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        had(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as the caller promised.
        had(unsafe { System.realloc(memory, layout, bytes) }, bytes)
    }
}
