//! The one checksum of this project: CRC32C (Castagnoli), as in iSCSI, ext4 and NVMe.

/// CRC32C of `bytes`.
#[inline]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn agrees_with_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn agrees_with_an_independent_implementation_at_every_length() {
        let bytes: Vec<u8> = (0..5000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for length in (0..300).chain([511, 512, 4095, 4096, 4097, 5000]) {
            assert_eq!(
                crc32c(&bytes[..length]),
                ::crc32c::crc32c(&bytes[..length]),
                "length {length}"
            );
        }
    }
}
