//! How a command ended: the status that a device gives, in words.

use stillpoint_processor::ports::DeviceError;

/// The bits of a status that say what happened: type in bits 10:8, code in 7:0 (Base Specification 2.0, section 3.3.3.2.1, without
/// the phase bit, as the kernel hands it over).
const WHAT: u16 = 0x7ff;
/// Do not retry (DNR): the same command would fail again.
const DO_NOT_RETRY: u16 = 1 << 14;
/// Command retry delay (CRD): which of the controller's delays is to pass before a retry; 0: none.
const RETRY_DELAY: u16 = 3 << 11;

/// The status of a command that the device does not have.
pub(crate) const INVALID_OPCODE: u16 = 0x001;
/// The status of a command with a field that the device does not take.
const INVALID_FIELD: u16 = 0x002;

/// What a status means: Base Specification 2.0, section 3.3.3.2.1, and NVM Command Set Specification 1.0, section 3.1.2.3.
#[must_use]
pub fn meaning(status: u16) -> &'static str {
    match status & WHAT {
        0x000 => "success",
        0x001 => "invalid opcode",
        0x002 => "invalid field",
        0x004 => "data transfer error",
        0x005 => "aborted because power goes",
        0x006 => "internal error",
        0x007 => "aborted on request",
        0x008 => "aborted because its queue was deleted",
        0x00b => "invalid namespace or format",
        0x020 => "the namespace is write-protected",
        0x021 => "the command is interrupted",
        0x022 => "transient transport error",
        0x080 => "LBA out of range",
        0x081 => "capacity exceeded",
        0x082 => "the namespace is not ready",
        0x083 => "reservation conflict",
        0x084 => "a format is in progress",
        0x180 => "conflicting attributes",
        0x182 => "write to a read-only range",
        0x280 => "write fault",
        0x281 => "unrecovered read error",
        0x282 => "guard check error",
        0x283 => "application tag check error",
        0x284 => "reference tag check error",
        0x285 => "compare failure",
        0x286 => "access denied",
        0x287 => "deallocated or unwritten block",
        0x371 => "aborted by the host",
        0x300..=0x3ff => "path error",
        0x700..=0x7ff => "error of this vendor",
        _ => "see the NVMe specification",
    }
}

/// The same as a sentence.
#[must_use]
pub fn text(status: u16) -> String {
    error(status).to_string()
}

/// The error that a status is to those who sent the command.
#[must_use]
pub fn error(status: u16) -> DeviceError {
    DeviceError::Nvme {
        status: status & WHAT,
        meaning: meaning(status),
    }
}

/// Whether the device does not have this command, or not as it was given: it has done nothing of it.
#[must_use]
pub fn is_refusal(status: u16) -> bool {
    matches!(status & WHAT, INVALID_OPCODE | INVALID_FIELD)
}

/// Whether the same command may do better.
#[must_use]
pub fn may_retry(status: u16) -> bool {
    status & DO_NOT_RETRY == 0
}

/// Whether the command was aborted before it was done, or never sent: on request, with its queue, by the kernel when it reset the
/// controller.
#[must_use]
pub fn was_taken_back(status: u16) -> bool {
    matches!(status & WHAT, 0x007 | 0x008 | 0x370 | 0x371)
}

/// Which of the controller's three delays is to pass before a retry (CRDT1 to CRDT3), counted from 0; `None`: it does not say.
#[must_use]
pub fn retry_delay(status: u16) -> Option<usize> {
    usize::from((status & RETRY_DELAY) >> 11).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_with_its_number_and_its_meaning() {
        assert_eq!(text(0x4080), "NVMe status 0x080: LBA out of range");
        assert_eq!(text(0x281), "NVMe status 0x281: unrecovered read error");
        assert_eq!(text(0x7c1), "NVMe status 0x7c1: error of this vendor");
        assert_eq!(text(0x17f), "NVMe status 0x17f: see the NVMe specification");
    }

    #[test]
    fn a_command_that_the_device_does_not_have_or_not_so_is_refused() {
        assert!(is_refusal(0x4001) && is_refusal(0x002));
        assert!(!is_refusal(0x000) && !is_refusal(0x102) && !is_refusal(0x280));
    }

    #[test]
    fn only_what_may_do_better_is_tried_again() {
        assert!(may_retry(0x021) && !may_retry(0x4080));
    }
}
