//! (to come)
pub fn unmask_into(destination: &mut [u8], source: &[u8], mask: [u8; 4]) {
    for (i, (d, s)) in destination.iter_mut().zip(source).enumerate() {
        *d = s ^ mask[i % 4];
    }
}
pub fn rotate(mask: [u8; 4], by: usize) -> [u8; 4] {
    let mut m = mask;
    m.rotate_left(by % 4);
    m
}
