//! What a controller and a namespace say about themselves.

use core::fmt;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bytes of every answer to Identify.
pub const IDENTIFY_BYTES: usize = 4096;

/// Identify Controller (CNS 01h): Base Specification 2.0, section 5.17.2.1. What is not used is skipped.
#[derive(Clone, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor (VID).
    pub vendor: U16,
    /// PCI subsystem vendor (SSVID).
    pub subsystem_vendor: U16,
    /// Serial number (SN), ASCII, padded with spaces.
    pub serial: [u8; 20],
    /// Model number (MN), ASCII, padded with spaces.
    pub model: [u8; 40],
    /// Firmware revision (FR), ASCII, padded with spaces.
    pub firmware: [u8; 8],
    skipped_72: [u8; 5],
    /// Maximum data transfer size (MDTS): a power of two of the smallest memory page (4096 bytes here); 0: no limit.
    pub mdts: u8,
    /// Controller number (CNTLID).
    pub controller: U16,
    /// Version (VER): major, minor, tertiary from the top.
    pub version: U32,
    skipped_84: [u8; 44],
    /// Command retry delay times (CRDT1 to CRDT3), in units of 100 ms; 0: none.
    pub retry_delays: [U16; 3],
    skipped_134: [u8; 122],
    /// Optional admin commands (OACS).
    pub admin_commands: U16,
    skipped_258: [u8; 8],
    /// Temperature from which on the controller warns (WCTEMP), kelvin; 0: not told.
    pub warning_kelvin: U16,
    /// Temperature from which on it is critical (CCTEMP), kelvin; 0: not told.
    pub critical_kelvin: U16,
    skipped_270: [u8; 10],
    /// Capacity of the whole subsystem (TNVMCAP), bytes; 0: not told.
    pub capacity_bytes: U128,
    skipped_296: [u8; 220],
    /// Highest number of a namespace (NN).
    pub namespaces: U32,
    /// Optional commands (ONCS).
    pub commands: U16,
    skipped_522: [u8; 3],
    /// Volatile write cache (VWC): bit 0.
    pub write_cache: u8,
    /// What is written whole or not at all in normal operation (AWUN), blocks, less one.
    pub atomic_write: U16,
    /// The same if power fails (AWUPF).
    pub atomic_write_power_fail: U16,
    skipped_530: [u8; 238],
    /// Name of the subsystem (SUBNQN), UTF-8, padded with zeros.
    pub subsystem: [u8; 256],
    skipped_1024: [u8; 3072],
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);

/// ONCS bit 2: dataset management.
const COMMANDS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS bit 3: write zeroes.
const COMMANDS_WRITE_ZEROES: u16 = 1 << 3;

impl IdentifyController {
    /// The answer in these bytes; `None` if they are not [`IDENTIFY_BYTES`].
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }

    /// The longest transfer, in bytes, with memory pages of 4096 bytes; `None`: no limit.
    #[must_use]
    pub fn transfer_bytes_max(&self) -> Option<u64> {
        match self.mdts {
            0 => None,
            power => 4096u64.checked_shl(u32::from(power)),
        }
    }

    /// Whether what was written may be lost with the power before a flush.
    #[must_use]
    pub fn has_volatile_write_cache(&self) -> bool {
        self.write_cache & 1 != 0
    }

    /// Whether it can be told which blocks are not needed.
    #[must_use]
    pub fn deallocates(&self) -> bool {
        self.commands.get() & COMMANDS_DATASET_MANAGEMENT != 0
    }

    /// Whether it writes zeros without being sent them.
    #[must_use]
    pub fn writes_zeroes(&self) -> bool {
        self.commands.get() & COMMANDS_WRITE_ZEROES != 0
    }

    /// The version of the specification that it follows, as in `1.4.0`.
    #[must_use]
    pub fn version_text(&self) -> String {
        let version = self.version.get();
        format!("{}.{}.{}", version >> 16, version >> 8 & 0xff, version & 0xff)
    }
}

/// Identify Namespace (CNS 00h): NVM Command Set Specification 1.0, section 4.1.5.1. What is not used is skipped.
#[derive(Clone, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size in logical blocks (NSZE).
    pub size_blocks: U64,
    /// Blocks that can be allocated (NCAP).
    pub capacity_blocks: U64,
    /// Blocks that are allocated (NUSE).
    pub used_blocks: U64,
    /// Features (NSFEAT).
    pub features: u8,
    /// Number of LBA formats, less one (NLBAF).
    pub formats_less_one: u8,
    /// The LBA format in use (FLBAS): bits 3:0, and 6:5 above them if there are more than 16.
    pub format: u8,
    skipped_27: [u8; 6],
    /// What becomes of deallocated blocks (DLFEAT): bits 2:0, what they read as; bit 3: Write Zeroes can deallocate.
    pub deallocated: u8,
    skipped_34: [u8; 2],
    /// What is written whole or not at all if power fails (NAWUPF), blocks, less one; counts if NSFEAT bit 1 is set and it is
    /// not 0, which means that the controller's (AWUPF) counts.
    pub atomic_write_power_fail: U16,
    skipped_38: [u8; 66],
    /// Globally unique identifier (NGUID), all zeros: none.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier (EUI64), all zeros: none.
    pub eui64: [u8; 8],
    /// The LBA formats (LBAF0 to LBAF63).
    pub formats: [LbaFormat; 64],
    skipped_384: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);

/// An LBA format: NVM Command Set Specification 1.0, section 4.1.5.1.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// Bytes of metadata of each block (MS).
    pub metadata_bytes: U16,
    /// Bytes of a block, as a power of two (LBADS).
    pub data_power: u8,
    /// Bits 1:0: relative performance (RP), 0 is best.
    pub performance: u8,
}

impl LbaFormat {
    /// Bytes of a block; 0 if the format cannot be used.
    #[must_use]
    pub fn data_bytes(self) -> u32 {
        match self.data_power {
            9..=31 => 1 << self.data_power,
            _ => 0,
        }
    }
}

impl IdentifyNamespace {
    /// The answer in these bytes; `None` if they are not [`IDENTIFY_BYTES`].
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }

    /// Which of [`Self::formats`] is in use.
    #[must_use]
    pub fn format_index(&self) -> usize {
        let low = usize::from(self.format & 0xf);
        match self.formats_less_one {
            ..16 => low,
            _ => low | usize::from(self.format >> 5 & 3) << 4,
        }
    }

    /// The LBA formats that it has.
    #[must_use]
    pub fn lba_formats(&self) -> &[LbaFormat] {
        &self.formats[..(usize::from(self.formats_less_one) + 1).min(self.formats.len())]
    }

    /// The LBA format in use.
    #[must_use]
    pub fn lba_format(&self) -> LbaFormat {
        self.formats[self.format_index()]
    }

    /// Whether Write Zeroes may be asked to deallocate: it can, and what is deallocated reads as zeros.
    #[must_use]
    pub fn deallocates_zeroes(&self) -> bool {
        const READS_AS_ZEROS: u8 = 0b001;
        const BY_WRITE_ZEROES: u8 = 1 << 3;
        self.deallocated & 0b111 == READS_AS_ZEROS && self.deallocated & BY_WRITE_ZEROES != 0
    }

    /// Bytes that are written whole or not at all if power fails.
    #[must_use]
    pub fn atomic_bytes(&self, controller: &IdentifyController) -> u64 {
        const OWN_ATOMIC_WRITES: u8 = 1 << 1;
        let own = self.atomic_write_power_fail;
        let less_one = match self.features & OWN_ATOMIC_WRITES {
            OWN_ATOMIC_WRITES if own != 0 => own,
            _ => controller.atomic_write_power_fail,
        };
        (u64::from(less_one.get()) + 1) * u64::from(self.lba_format().data_bytes())
    }
}

/// ASCII padded with spaces or zeros, as text.
#[must_use]
pub fn text(padded: &[u8]) -> String {
    let end = padded.iter().position(|&byte| byte == 0).unwrap_or(padded.len());
    String::from_utf8_lossy(&padded[..end]).trim().to_owned()
}

/// An identifier as hexadecimal digits; `None` if it is all zeros, which means that there is none.
#[must_use]
pub fn identifier(bytes: &[u8]) -> Option<String> {
    struct Hex<'a>(&'a [u8]);
    impl fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }
    bytes
        .iter()
        .any(|&byte| byte != 0)
        .then(|| Hex(bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; IDENTIFY_BYTES];
        for (offset, field) in fields {
            bytes[*offset..*offset + field.len()].copy_from_slice(field);
        }
        bytes
    }

    #[test]
    fn a_controller_is_read_from_its_bytes() {
        let bytes = filled(&[
            (0, &[0x86, 0x80]),
            (4, b"S1                  "),
            (24, b"Drive 9000                              "),
            (64, b"1.0     "),
            (77, &[5]),
            (78, &[7, 0]),
            (80, &[0, 4, 1, 0]),
            (128, &[1, 0, 2, 0, 0, 3]),
            (266, &[0x57, 1]),
            (268, &[0x61, 1]),
            (280, &[0, 0, 0, 0, 1]),
            (516, &[16]),
            (520, &[0x0c, 0]),
            (525, &[7]),
            (526, &[0xff, 0]),
            (528, &[3, 0]),
            (768, b"nqn.2019-08.org.qemu:a"),
        ]);
        let controller = IdentifyController::read(&bytes).expect("the right size");
        assert_eq!(controller.vendor, 0x8086);
        assert_eq!(text(&controller.serial), "S1");
        assert_eq!(text(&controller.model), "Drive 9000");
        assert_eq!(text(&controller.firmware), "1.0");
        assert_eq!(controller.transfer_bytes_max(), Some(128 << 10));
        assert_eq!(controller.controller, 7);
        assert_eq!(controller.version_text(), "1.4.0");
        assert_eq!(controller.retry_delays.map(U16::get), [1, 2, 0x300]);
        assert_eq!(
            (controller.warning_kelvin.get(), controller.critical_kelvin.get()),
            (0x157, 0x161)
        );
        assert_eq!(controller.capacity_bytes, 1 << 32);
        assert_eq!(controller.namespaces, 16);
        assert!(controller.deallocates() && controller.writes_zeroes());
        assert!(controller.has_volatile_write_cache());
        assert_eq!(controller.atomic_write_power_fail, 3);
        assert_eq!(text(&controller.subsystem), "nqn.2019-08.org.qemu:a");
        assert!(IdentifyController::read(&bytes[1..]).is_none());
    }

    #[test]
    fn a_controller_without_anything_has_nothing() {
        let controller = IdentifyController::read(&filled(&[])).expect("the right size");
        assert_eq!(controller.transfer_bytes_max(), None);
        assert!(!controller.deallocates() && !controller.writes_zeroes());
        assert!(!controller.has_volatile_write_cache());
        // A device that says nonsense makes no shift overflow.
        let silly = IdentifyController::read(&filled(&[(77, &[255])])).expect("the right size");
        assert_eq!(silly.transfer_bytes_max(), None);
    }

    #[test]
    fn a_namespace_is_read_from_its_bytes() {
        let bytes = filled(&[
            (0, &[0, 0, 4]),
            (24, &[2, 1, 1]),
            (36, &[7, 0]),
            (104, &[1; 16]),
            (128, &[0, 0, 9, 2]),
            (132, &[8, 0, 12, 0]),
        ]);
        let namespace = IdentifyNamespace::read(&bytes).expect("the right size");
        let controller = IdentifyController::read(&filled(&[(528, &[1, 0])])).expect("the right size");
        assert_eq!(namespace.size_blocks, 4 << 16);
        assert_eq!(namespace.lba_formats().len(), 2);
        assert_eq!(namespace.format_index(), 1);
        let format = namespace.lba_format();
        assert_eq!((format.data_bytes(), format.metadata_bytes.get()), (4096, 8));
        assert_eq!(namespace.lba_formats()[0].data_bytes(), 512);
        assert_eq!(namespace.atomic_bytes(&controller), 8 * 4096);
        assert_eq!(
            identifier(&namespace.nguid).as_deref(),
            Some("01".repeat(16).as_str())
        );
        assert_eq!(identifier(&namespace.eui64), None);
    }

    #[test]
    fn zeros_are_deallocated_only_where_that_can_be_asked_for_and_reads_as_zeros() {
        // Bits 2:0 of DLFEAT: 0 says nothing, 1 zeros, 2 bytes of FFh; the other bits are of something else.
        for (features, expected) in [
            (0b0000_1001, true),
            (0b1111_1001, true),
            (0b0000_0001, false),
            (0b0000_1000, false),
            (0b0000_1010, false),
            (0b0000_1011, false),
        ] {
            let bytes = filled(&[(33, &[features])]);
            let namespace = IdentifyNamespace::read(&bytes).expect("the right size");
            assert_eq!(namespace.deallocates_zeroes(), expected, "{features:#b}");
        }
    }

    #[test]
    fn atomic_writes_are_the_namespaces_own_only_if_it_says_so() {
        let controller = IdentifyController::read(&filled(&[(528, &[1, 0])])).expect("the right size");
        // NSFEAT, NAWUPF, blocks of 512 bytes that are written whole.
        for (features, own, blocks) in [(0, 7, 2), (1 << 1, 7, 8), (1 << 1, 0, 2), (!(1 << 1), 7, 2)] {
            let bytes = filled(&[(24, &[features]), (36, &[own, 0]), (130, &[9])]);
            let namespace = IdentifyNamespace::read(&bytes).expect("the right size");
            assert_eq!(
                namespace.atomic_bytes(&controller),
                blocks * 512,
                "{features:#x} {own}"
            );
        }
    }

    #[test]
    fn more_than_sixteen_formats_have_a_longer_index() {
        let namespace = |formats_less_one| {
            let bytes = filled(&[(25, &[formats_less_one, 0b0100_0011])]);
            IdentifyNamespace::read(&bytes).expect("the right size")
        };
        assert_eq!(namespace(15).format_index(), 3);
        assert_eq!(namespace(40).format_index(), 0b10_0011);
        // All numbers that bytes can say are those of a format.
        let bytes = filled(&[(25, &[255, 255])]);
        let silly = IdentifyNamespace::read(&bytes).expect("the right size");
        assert_eq!((silly.lba_formats().len(), silly.format_index()), (64, 63));
        assert_eq!(silly.lba_format().data_bytes(), 0);
    }
}
