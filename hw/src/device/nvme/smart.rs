//! The log of a device's health.

use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Number of the log page (LID).
pub const SMART_PAGE: u8 = 0x02;
/// Bytes of the log page.
pub const SMART_BYTES: usize = 512;

/// SMART / Health Information (log page 02h): Base Specification 2.0, section 5.16.1.3.
#[derive(Clone, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// What is critical: see [`Self::warnings`].
    pub critical_warning: u8,
    /// Composite temperature, kelvin.
    pub temperature_kelvin: U16,
    /// Spare capacity left, percent.
    pub spare_percent: u8,
    /// Below this the spare is too little, percent.
    pub spare_threshold_percent: u8,
    /// How much of its life is used, percent; may be above 100, and stays at 255.
    pub used_percent: u8,
    skipped_6: [u8; 26],
    /// Read from the host, thousands of 512 bytes.
    pub data_units_read: U128,
    /// Written by the host, thousands of 512 bytes.
    pub data_units_written: U128,
    /// Read commands.
    pub read_commands: U128,
    /// Write commands.
    pub write_commands: U128,
    /// Time in which it was at work, minutes.
    pub busy_minutes: U128,
    /// Power cycles.
    pub power_cycles: U128,
    /// Hours that it was on.
    pub power_on_hours: U128,
    /// Times it lost power without notice.
    pub unsafe_shutdowns: U128,
    /// Times it could not give back what was written.
    pub media_errors: U128,
    /// Entries that the error log ever had.
    pub error_log_entries: U128,
    /// Minutes above the temperature of warnings.
    pub warning_minutes: U32,
    /// Minutes above the critical temperature.
    pub critical_minutes: U32,
    skipped_200: [u8; 312],
}

const _: () = assert!(size_of::<SmartLog>() == SMART_BYTES);

/// What the bits of the critical warning mean, from bit 0 on.
const WARNINGS: [&str; 6] = [
    "spare capacity is below its threshold",
    "temperature is beyond its threshold",
    "reliability is degraded",
    "the media is read-only",
    "the backup of volatile memory has failed",
    "persistent memory is read-only or unreliable",
];

impl SmartLog {
    /// The log in these bytes; `None` if they are not [`SMART_BYTES`].
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }

    /// What is critical, in words.
    #[must_use]
    pub fn warnings(&self) -> Vec<&'static str> {
        let is_set = |bit: &usize| self.critical_warning & 1 << bit != 0;
        (0..WARNINGS.len())
            .filter(is_set)
            .map(|bit| WARNINGS[bit])
            .collect()
    }

    /// Temperature in degrees Celsius; `None` if the device does not tell.
    #[must_use]
    pub fn celsius(&self) -> Option<i32> {
        match self.temperature_kelvin.get() {
            0 => None,
            kelvin => Some(i32::from(kelvin) - 273),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_from_its_bytes() {
        let mut bytes = [0; SMART_BYTES];
        bytes[0] = 0b1001;
        bytes[1..3].copy_from_slice(&323u16.to_le_bytes());
        bytes[3..6].copy_from_slice(&[100, 10, 3]);
        // Each counter is told by its place.
        for (number, offset) in (32..192).step_by(16).enumerate() {
            bytes[offset] = number as u8 + 1;
        }
        bytes[192] = 11;
        bytes[196] = 12;
        let log = SmartLog::read(&bytes).expect("the right size");
        assert_eq!(
            log.warnings(),
            ["spare capacity is below its threshold", "the media is read-only"]
        );
        assert_eq!(log.celsius(), Some(50));
        assert_eq!(
            (log.spare_percent, log.spare_threshold_percent, log.used_percent),
            (100, 10, 3)
        );
        let counters = [
            &log.data_units_read,
            &log.data_units_written,
            &log.read_commands,
            &log.write_commands,
            &log.busy_minutes,
            &log.power_cycles,
            &log.power_on_hours,
            &log.unsafe_shutdowns,
            &log.media_errors,
            &log.error_log_entries,
        ];
        assert!(counters.iter().map(|counter| counter.get()).eq(1..=10));
        assert_eq!((log.warning_minutes.get(), log.critical_minutes.get()), (11, 12));
        assert!(SmartLog::read(&bytes[..511]).is_none());
    }

    #[test]
    fn a_device_without_a_thermometer_has_no_temperature() {
        let log = SmartLog::read(&[0; SMART_BYTES]).expect("the right size");
        assert_eq!(log.celsius(), None);
        assert!(log.warnings().is_empty());
    }
}
