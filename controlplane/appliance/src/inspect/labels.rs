//! Both labels of every device.

use std::sync::Arc;

use super::model::ProblemInfo;
use super::shards::CheckedPool;
use crate::label::PoolDevices;
use stillpoint_hw::device::{Opener, PoolFiles};
use stillpoint_ondisk::label::PoolLabel;
use stillpoint_ondisk::{BLOCK_BYTES, PAGE_BYTES};
use stillpoint_processor::DeviceIndex;
use stillpoint_processor::ports::{OpenDevice, Transferred};
use stillpoint_processor::shard::check::{Mend, PageWrite};

/// A label that is damaged, or older than the other, is written from the other.
pub(super) fn check(devices: &PoolDevices, files: &Arc<PoolFiles>, checked: &mut CheckedPool) {
    let mut opener = Opener::new(files.clone());
    let there = devices.paths.iter().enumerate();
    for (number, path) in there.filter(|(_, path)| !path.as_os_str().is_empty()) {
        let device = DeviceIndex(number as u8);
        let blocks = [0, devices.layout.label_copy_block(devices.device_of(number))];
        let labels = blocks.map(|block| read(&mut opener, device, block));
        let newest = labels
            .iter()
            .flatten()
            .max_by_key(|(label, _)| label.sequence.get());
        let Some((newest, bytes)) = newest else {
            // The pool was found by its labels; one that vanished since is the device's affair.
            let message = format!("{}: neither label can be read", path.display());
            checked.about_labels(ProblemInfo::damage("label", None, message), None);
            continue;
        };
        for ((label, block), name) in labels
            .iter()
            .zip(blocks)
            .zip(["first label", "copy of the label"])
        {
            let wrong = match label {
                Ok((label, _)) if label.sequence == newest.sequence => continue,
                Ok(_) => String::from("older than the other"),
                Err(wrong) => wrong.clone(),
            };
            let message = format!("{name} of {}: {wrong}", path.display());
            let mend = Mend {
                what: format!("{name} of {} is written from the other", path.display()),
                loses: false,
                writes: vec![PageWrite {
                    device,
                    block,
                    bytes: bytes.clone(),
                }],
            };
            checked.about_labels(ProblemInfo::damage("label", None, message), Some(mend));
        }
    }
}

fn read(opener: &mut Opener, device: DeviceIndex, block: u64) -> Result<(Box<PoolLabel>, Vec<u8>), String> {
    let mut bytes = vec![0; PAGE_BYTES];
    let mut reads = [Transferred {
        device,
        offset_bytes: block * BLOCK_BYTES as u64,
        bytes: &mut bytes,
        result: Ok(()),
    }];
    opener.read_all(&mut reads);
    reads[0].result.map_err(|error| error.to_string())?;
    let label = PoolLabel::parse(&bytes).map_err(|damage| damage.to_string())?;
    Ok((Box::new(label), bytes))
}
