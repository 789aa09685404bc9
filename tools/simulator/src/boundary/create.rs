//! A crash at every write of making a pool, on blank devices and over an old pool: the new pool is there whole or not
//! at all; the old one shows what it held, or says that it is damaged.

use std::cell::RefCell;
use std::rc::Rc;

use stillpoint_ondisk::label::PoolLabel;
use stillpoint_ondisk::layout::Layout;
use stillpoint_processor::format::make_pool;

use super::choices::{Budget, choices};
use super::history::History;
use super::medium::{Image, Medium, Port};
use super::memory::Tail;
use super::rig::{Checked, Rig, broken};
use super::script::Script;
use super::{POOL, spec_of};
use crate::model::{Broken, Crash};
use crate::random::{Random, mix};
use crate::world::Coverage;

/// Identity of the pool that is made here.
const NEW_POOL: [u8; 16] = *b"the pool to come";

/// Explores making a pool on blank devices, and over the pool of `rig`.
pub(super) fn explore(script: &Script, rig: Rig, budget: Budget, coverage: &mut Coverage) -> Checked {
    let (now_ns, old) = (rig.now_ns, rig.history.clone());
    let (image, _) = rig.die();
    let mut random = Random::new(mix(script.seed ^ 0xC8EA7E));
    let blank = Image::blank(&script.devices).with_durable_writes(script.durable_writes);
    let before = [(blank, History::default()), (image.durable(), old)];
    for (image, old) in before {
        let medium = Rc::new(RefCell::new(Medium::new(image.clone())));
        make(script, &medium)?;
        let calls = medium.borrow().open_calls;
        for call in 0..calls {
            let medium = Rc::new(RefCell::new(Medium::new(image.clone())));
            medium.borrow_mut().calls_left = Some(call);
            if make(script, &medium).is_ok() {
                return broken("a device that is gone was not missed");
            }
            coverage.count("boundaries of pool create");
            let image = medium.borrow().image();
            let at_risk = image.at_risk();
            for choice in choices(at_risk.len(), budget, &mut random) {
                coverage.count("power cuts");
                let left = choice.apply(&image, &at_risk);
                check(script, left, &old, now_ns).map_err(|Broken(why)| {
                    Broken(format!(
                        "making a pool, call {call}, power cut, {choice:?}: {why}"
                    ))
                })?;
            }
        }
    }
    Ok(())
}

fn make(script: &Script, medium: &Rc<RefCell<Medium>>) -> Checked<Layout> {
    make_pool(&mut Port(Rc::clone(medium)), &spec_of(script, NEW_POOL))
        .map_err(|error| Broken(format!("the pool cannot be made: {error}")))
}

/// The pool that the labels on these devices make, by the rules of the appliance.
pub(crate) fn layout_of(image: &Image) -> Option<Layout> {
    let devices = image.starts.len() - 1;
    let label_at = |place| PoolLabel::parse(&image.newest_page(place)?[..]).ok();
    let labels: Vec<PoolLabel> = (0..devices)
        .map(|device| {
            let first = label_at(image.starts[device]);
            first.or_else(|| label_at(image.starts[device + 1] - 1))
        })
        .collect::<Option<_>>()?;
    let fits = labels.iter().enumerate().all(|(device, label)| {
        label.header.pool == labels[0].header.pool
            && label.sequence == labels[0].sequence
            && label.devices == labels[0].devices
            && usize::from(label.device_index.get()) == device
            && usize::from(label.device_count.get()) == devices
    });
    fits.then(|| Layout::of(&labels[0]).ok()).flatten()
}

fn check(script: &Script, left: Image, old: &History, now_ns: u64) -> Checked {
    let open = |layout: &Layout, image: Image| {
        let medium = Rc::new(RefCell::new(Medium::new(image)));
        medium.borrow_mut().instant = true;
        let tails = vec![Tail(None); usize::from(layout.shard_count)];
        let opened = Rig::open(layout, &medium, tails, now_ns + 1, Random::new(now_ns));
        opened.map_err(|error| Broken(format!("the pool does not open: {error}")))
    };
    match layout_of(&left) {
        Some(layout) if layout.pool == POOL => {
            // An old pool that was partly overwritten may say so.
            if let Ok(mut rig) = open(&layout, left) {
                rig.faulty = true;
                rig.recovered(old, Crash::PowerCut)?;
            }
            Ok(())
        }
        Some(layout) => {
            open(&layout, left)?.recovered(&History::default(), Crash::PowerCut)?;
            Ok(())
        }
        None => {
            let medium = Rc::new(RefCell::new(Medium::new(left)));
            let layout = make(script, &medium)?;
            let left = medium.borrow().image();
            open(&layout, left)?.recovered(&History::default(), Crash::PowerCut)?;
            Ok(())
        }
    }
}
