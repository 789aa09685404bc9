//! What a check needs: the difference between two views of the same space, and pages to write it anew.

use super::bits::page_words;
use super::{Extent, Space};
use crate::ids::{DeviceAddress, DeviceIndex};
use stillpoint_ondisk::bitmap::{BLOCKS_PER_PAGE, BitmapPage};
use stillpoint_ondisk::page::{PageHeader, PageKind, seal};
use zerocopy::{FromBytes, IntoBytes};

impl Space {
    /// The blocks that are used here and not in `other`, a view of the same shard's space: runs, in order.
    #[must_use]
    pub fn used_but_not_in(&self, other: &Self) -> Vec<Extent> {
        assert_eq!(self.referenced.len(), other.referenced.len(), "the same space");
        let mut runs: Vec<Extent> = Vec::new();
        for (device, slice) in self.slices.iter().enumerate() {
            let first = slice.first_page * BLOCKS_PER_PAGE;
            let words = page_words(slice.first_page).start..page_words(slice.first_page + slice.pages).start;
            for word in words {
                let mut bits = self.referenced[word] & !other.referenced[word];
                while bits != 0 {
                    let bit = bits.trailing_zeros();
                    let blocks = (bits >> bit).trailing_ones();
                    let block = slice.start_block + (word * 64 - first) as u64 + u64::from(bit);
                    push_run(
                        &mut runs,
                        DeviceAddress::new(DeviceIndex(device as u8), block),
                        blocks,
                    );
                    let end = bit + blocks;
                    bits = if end == 64 { 0 } else { bits >> end << end };
                }
            }
        }
        runs
    }

    /// Pages of the bitmap, over all devices: device and position within the device's bitmap, in the order in which they
    /// lie on the home device.
    pub fn bitmap_pages(&self) -> impl Iterator<Item = (DeviceIndex, u64)> {
        self.slices.iter().enumerate().flat_map(|(device, slice)| {
            (0..slice.pages as u64).map(move |page| (DeviceIndex(device as u8), page))
        })
    }

    /// Writes the used bits of a page, sealed, to `into` (4096 bytes).
    pub fn used_image(&self, device: DeviceIndex, page: u64, generation: u64, into: &mut [u8]) {
        let number = self.page_number(device, page);
        let words = &self.referenced[page_words(number)];
        let image = BitmapPage::mut_from_bytes(into).expect("an image is 4096 bytes");
        image.header = PageHeader::new(PageKind::Bitmap, self.pool);
        image.generation = generation.into();
        image.index = page.into();
        image.shard = self.shard.0.into();
        image.device = u16::from(device.0).into();
        image.used_blocks = words.iter().map(|word| word.count_ones()).sum::<u32>().into();
        image.reserved = [0; 8];
        for (to, from) in image.words.iter_mut().zip(words) {
            *to = (*from).into();
        }
        seal(image.as_mut_bytes());
    }
}

fn push_run(runs: &mut Vec<Extent>, address: DeviceAddress, blocks: u32) {
    if let Some(last) = runs.last_mut()
        && last.address.device() == address.device()
        && last.address.block() + u64::from(last.blocks) == address.block()
    {
        last.blocks += blocks;
        return;
    }
    runs.push(Extent { address, blocks });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardIndex;
    use stillpoint_ondisk::layout::Layout;

    #[test]
    fn differences_are_runs_within_a_device() {
        let layout = Layout::plan([1; 16], 1, &[40_000, 2_000]).expect("a layout");
        let (empty, mut used) = (
            Space::new(&layout, ShardIndex(0)),
            Space::new(&layout, ShardIndex(0)),
        );
        let start = layout.data_start_block(0, 0);
        let place = |device, block, blocks| Extent {
            address: DeviceAddress::new(DeviceIndex(device), block),
            blocks,
        };
        let second = layout.slice_start_block(0, 1);
        // The last block of the first slice and the first of the second are no neighbours.
        let end = layout.slice_start_block(0, 0) + layout.devices[0].slice_blocks;
        let expected = [
            place(0, start, 1),
            place(0, start + 2, 300),
            place(0, end - 64, 64),
            place(1, second, 3),
        ];
        for extent in expected {
            assert!(used.mark_used(extent));
        }
        assert_eq!(used.used_but_not_in(&empty), expected);
        assert_eq!(empty.used_but_not_in(&used), []);
    }
}
