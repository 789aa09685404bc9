//! Commands as the kernel takes them: `struct nvme_uring_cmd` and `struct nvme_passthru_cmd` of `linux/nvme_ioctl.h`, which
//! are the same 72 bytes but for the last word, and what Dataset Management wants.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a [`Command`].
pub const COMMAND_BYTES: usize = 72;

/// Flush: NVM Command Set Specification 1.0, and Base Specification 2.0, section 7.1.
const FLUSH: u8 = 0x00;
/// Write: NVM Command Set Specification 1.0, section 3.2.6.
const WRITE: u8 = 0x01;
/// Read: NVM Command Set Specification 1.0, section 3.2.4.
const READ: u8 = 0x02;
/// Write Zeroes: NVM Command Set Specification 1.0, section 3.2.8.
const WRITE_ZEROES: u8 = 0x08;
/// Dataset Management: NVM Command Set Specification 1.0, section 3.2.3.
const DATASET_MANAGEMENT: u8 = 0x09;
/// Force Unit Access, in dword 12 of Write and Write Zeroes: bit 14 of what sysfs and traces call `control`.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Deallocate, in dword 12 of Write Zeroes: the blocks may be forgotten, and are zeros.
const ZEROES_DEALLOCATE: u32 = 1 << 25;
/// Deallocate, in dword 11 of Dataset Management.
const DEALLOCATE: u32 = 1 << 2;

/// Get Log Page: Base Specification 2.0, section 5.16.
const GET_LOG_PAGE: u8 = 0x02;
/// Identify: Base Specification 2.0, section 5.17.
const IDENTIFY: u8 = 0x06;

/// CNS of a namespace.
pub const IDENTIFY_NAMESPACE: u32 = 0;
/// CNS of a controller.
pub const IDENTIFY_CONTROLLER: u32 = 1;
/// The number that means all namespaces.
const ALL_NAMESPACES: u32 = 0xffff_ffff;

/// One command with where its data lies. All that is not set is zero.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Command {
    /// What it does.
    pub opcode: u8,
    /// Fused operations; none.
    pub flags: u8,
    reserved: U16,
    /// Number of the namespace.
    pub namespace: U32,
    /// Command dword 2.
    pub word_2: U32,
    /// Command dword 3.
    pub word_3: U32,
    /// Address of metadata; none.
    pub metadata: U64,
    /// Address of the data, or of an array of `struct iovec`.
    pub address: U64,
    /// Bytes of metadata.
    pub metadata_bytes: U32,
    /// Bytes of data, or the number of vectors.
    pub data_length: U32,
    /// Command dwords 10 to 15.
    pub words: [U32; 6],
    /// How long the kernel waits for it, milliseconds; 0: as long as for its own.
    pub timeout_ms: U32,
    /// `nvme_passthru_cmd`: where the kernel puts dword 0 of the completion.
    pub result: U32,
}

const _: () = assert!(size_of::<Command>() == COMMAND_BYTES);

impl Command {
    /// Identify: Base Specification 2.0, section 5.17. `namespace` is 0 for what is not of a namespace. The data is
    /// [`super::identify::IDENTIFY_BYTES`] long.
    #[must_use]
    pub fn identify(structure: u32, namespace: u32) -> Self {
        let mut command = Self {
            opcode: IDENTIFY,
            namespace: namespace.into(),
            ..Self::default()
        };
        command.words[0] = structure.into();
        command
    }

    /// Get Log Page of the whole controller: Base Specification 2.0, section 5.16. `length_bytes` is a multiple of 4.
    #[must_use]
    pub fn log_page(page: u8, length_bytes: u32) -> Self {
        let words_less_one = length_bytes / 4 - 1;
        let mut command = Self {
            opcode: GET_LOG_PAGE,
            namespace: ALL_NAMESPACES.into(),
            ..Self::default()
        };
        command.words[0] = (words_less_one << 16 | u32::from(page)).into();
        command.words[1] = (words_less_one >> 16).into();
        command
    }

    /// Read of so many logical blocks (1 to 65536).
    #[must_use]
    pub fn read(namespace: u32, first_block: u64, blocks: u32) -> Self {
        Self::of_blocks(READ, namespace, first_block, blocks, 0)
    }

    /// Write of so many logical blocks (1 to 65536); `durable`: past the device's volatile cache.
    #[must_use]
    pub fn write(namespace: u32, first_block: u64, blocks: u32, durable: bool) -> Self {
        let flags = if durable { FORCE_UNIT_ACCESS } else { 0 };
        Self::of_blocks(WRITE, namespace, first_block, blocks, flags)
    }

    /// So many logical blocks (1 to 65536) become zeros. `deallocate`: the device is to forget them, which makes them zeros only where it
    /// says so ([`super::identify::IdentifyNamespace::deallocates_zeroes`]); `durable`: past the device's volatile cache.
    #[must_use]
    pub fn write_zeroes(
        namespace: u32,
        first_block: u64,
        blocks: u32,
        deallocate: bool,
        durable: bool,
    ) -> Self {
        let flag = |wanted, flag| if wanted { flag } else { 0 };
        let flags = flag(deallocate, ZEROES_DEALLOCATE) | flag(durable, FORCE_UNIT_ACCESS);
        Self::of_blocks(WRITE_ZEROES, namespace, first_block, blocks, flags)
    }

    /// What was written to the namespace becomes durable.
    #[must_use]
    pub fn flush(namespace: u32) -> Self {
        Self {
            opcode: FLUSH,
            namespace: namespace.into(),
            ..Self::default()
        }
    }

    /// The device may forget so many ranges (1 to 256): the data is as many [`DatasetRange`]s.
    #[must_use]
    pub fn deallocate(namespace: u32, ranges: u32) -> Self {
        let mut command = Self {
            opcode: DATASET_MANAGEMENT,
            namespace: namespace.into(),
            ..Self::default()
        };
        command.words[0] = (ranges - 1).into();
        command.words[1] = DEALLOCATE.into();
        command
    }

    fn of_blocks(opcode: u8, namespace: u32, first_block: u64, blocks: u32, flags: u32) -> Self {
        assert!(
            (1..=1 << 16).contains(&blocks),
            "a command takes 1 to 65536 blocks"
        );
        let mut command = Self {
            opcode,
            namespace: namespace.into(),
            ..Self::default()
        };
        command.words[0] = (first_block as u32).into();
        command.words[1] = ((first_block >> 32) as u32).into();
        command.words[2] = ((blocks - 1) | flags).into();
        command
    }

    /// The same command with this memory.
    #[must_use]
    pub fn with_data(mut self, address: usize, length: u32) -> Self {
        self.address = (address as u64).into();
        self.data_length = length.into();
        self
    }
}

/// One range of Dataset Management: NVM Command Set Specification 1.0, section 3.2.3.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DatasetRange {
    /// Hints of how it will be used; none.
    pub attributes: U32,
    /// Logical blocks.
    pub length_blocks: U32,
    /// First logical block.
    pub first_block: U64,
}

const _: () = assert!(size_of::<DatasetRange>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_every_field_in_its_place() {
        let mut command = Command::identify(IDENTIFY_NAMESPACE, 0x0403_0201).with_data(0x1122, 4096);
        command.word_2 = 2.into();
        command.word_3 = 3.into();
        command.metadata = 4.into();
        command.metadata_bytes = 5.into();
        for (number, word) in (10..).zip(&mut command.words) {
            *word = number.into();
        }
        command.timeout_ms = 16.into();
        command.result = 17.into();
        let bytes = command.as_bytes();
        assert_eq!(bytes[..8], [6, 0, 0, 0, 1, 2, 3, 4]);
        let word =
            |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"));
        assert_eq!([8, 12].map(word), [2, 3]);
        assert_eq!([16, 24].map(word), [4, 0x1122]);
        assert_eq!([32, 36].map(word), [5, 4096]);
        assert_eq!([40, 44, 48, 52, 56, 60].map(word), [10, 11, 12, 13, 14, 15]);
        assert_eq!([64, 68].map(word), [16, 17]);
    }

    #[test]
    fn a_log_page_is_asked_for_in_words_less_one() {
        let command = Command::log_page(2, 512);
        assert_eq!((command.opcode, command.namespace.get()), (2, 0xffff_ffff));
        assert_eq!(command.words[0], 127 << 16 | 2);
        assert_eq!(command.words[1], 0);
        let long = Command::log_page(7, 1 << 20);
        assert_eq!((long.words[0].get(), long.words[1].get()), (0xffff << 16 | 7, 3));
    }

    #[test]
    fn commands_on_blocks_say_which_and_how_many_less_one() {
        let read = Command::read(7, 0x0001_2345_6789, 8);
        assert_eq!((read.opcode, read.namespace.get()), (2, 7));
        assert_eq!(read.words.map(U32::get), [0x2345_6789, 1, 7, 0, 0, 0]);
        let write = Command::write(7, 16, 65536, false);
        assert_eq!((write.opcode, write.words[2].get()), (1, 0xffff));
        let durable = Command::write(7, 16, 1, true);
        assert_eq!(durable.words[2], 1 << 30);
        for (deallocate, durable, flags) in [
            (false, false, 0),
            (true, false, 1 << 25),
            (false, true, 1 << 30),
            (true, true, 1 << 25 | 1 << 30),
        ] {
            let zeroes = Command::write_zeroes(7, 16, 2, deallocate, durable);
            assert_eq!((zeroes.opcode, zeroes.words[2].get()), (8, flags | 1));
            assert_eq!((zeroes.address.get(), zeroes.data_length.get()), (0, 0));
        }
        let flush = Command::flush(7);
        assert_eq!(
            (flush.opcode, flush.namespace.get(), flush.words),
            (0, 7, Default::default())
        );
        let forget = Command::deallocate(7, 3);
        assert_eq!(
            (forget.opcode, forget.words[0].get(), forget.words[1].get()),
            (9, 2, 4)
        );
    }

    #[test]
    fn a_range_has_every_field_in_its_place() {
        let range = DatasetRange {
            attributes: 1.into(),
            length_blocks: 2.into(),
            first_block: 0x0304_0506_0708.into(),
        };
        assert_eq!(range.as_bytes(), [1, 0, 0, 0, 2, 0, 0, 0, 8, 7, 6, 5, 4, 3, 0, 0]);
    }
}
