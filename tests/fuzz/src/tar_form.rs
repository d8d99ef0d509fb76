//! Tar streams that are none but for a checksum say little: a reader stops at the first.

const BLOCK: usize = 512;
const SUM: std::ops::Range<usize> = 148..156;

/// Makes the checksum of every header right, as far as the sizes in the headers lead from one to the next.
pub fn repair(stream: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = stream.get_mut(at..at + BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[SUM].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let blocks = size(&stream[at..at + BLOCK]).div_ceil(BLOCK);
        let Some(next) = blocks.checked_mul(BLOCK).and_then(|bytes| bytes.checked_add(at + BLOCK)) else {
            break;
        };
        at = next;
    }
}

/// The size field, where it is octal digits; what else it can be is a reader's business.
fn size(header: &[u8]) -> usize {
    let field = header[124..136].iter().skip_while(|byte| **byte == b' ');
    let digits = field.take_while(|byte| (b'0'..=b'7').contains(byte));
    digits.fold(0_usize, |size, digit| size.saturating_mul(8).saturating_add(usize::from(digit - b'0')))
}
