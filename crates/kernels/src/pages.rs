//! A hint about the pages behind large buffers. It exists here because asking the system is `unsafe`; it knows nothing of
//! what the buffers hold.

/// Below this many bytes pages do not matter.
const LARGE: usize = 4 << 20;

/// Asks for pages of 2 MiB behind the room of `buffer`, which nobody should have touched yet: filling it then takes one fault
/// where it took 512, and streaming it needs fewer page tables. Only for buffers that are used to their end, as a large page
/// is there as a whole. A hint: small buffers and other systems are left as they are.
pub fn prefer_large_pages<T>(buffer: &mut Vec<T>) {
    let bytes = buffer.capacity() * size_of::<T>();
    if bytes < LARGE {
        return;
    }
    #[cfg(target_os = "linux")]
    {
        /// A multiple of the ordinary page of every system; the hint must begin at one.
        const PAGE: usize = 64 << 10;
        let start = buffer.as_mut_ptr().cast::<u8>();
        let skip = start.align_offset(PAGE).min(bytes);
        // SAFETY: the range is inside the buffer's allocation, which is borrowed. The call changes which pages back it, not
        // what they hold, and fails without effect where the system has no large pages.
        unsafe {
            libc::madvise(start.add(skip).cast(), bytes - skip, libc::MADV_HUGEPAGE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_keep_their_contents_whatever_their_size() {
        for len in [0, 1, 1000, LARGE - 1, LARGE, 3 * LARGE + 12_345] {
            let mut buffer: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let before = buffer.clone();
            prefer_large_pages(&mut buffer);
            assert!(buffer == before);
            let mut empty: Vec<f32> = Vec::with_capacity(len);
            prefer_large_pages(&mut empty);
            empty.resize(len, 1.5);
            assert!(empty.iter().all(|&x| x == 1.5));
        }
    }
}
