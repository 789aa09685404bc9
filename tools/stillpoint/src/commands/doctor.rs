//! `stillpoint doctor`: the machine, and, if a daemon answers, its pools.

use crate::cli::Global;
use crate::client::Client;
use crate::exit::Failure;
use crate::output;
use stillpoint_appliance::Error;
use stillpoint_appliance::api::model::{DoctorInfo, Finding, FindingState};
use stillpoint_appliance::daemon::{self, DaemonOptions};
use stillpoint_appliance::doctor;

/// Does what is asked. Problems (not notes) make it fail.
pub fn run(global: &Global) -> Result<(), Failure> {
    let info = match Client::new(global).get::<DoctorInfo>("/v1/doctor") {
        Ok(info) => info,
        Err(Failure::Unreachable(reason)) => {
            let mut findings =
                doctor::machine(daemon::processors_default(), DaemonOptions::BUFFER_BYTES, None);
            findings.push(Finding {
                subject: "daemon".to_owned(),
                state: FindingState::Note,
                message: reason,
                mend: Some("stillpoint serve".to_owned()),
            });
            DoctorInfo { findings }
        }
        Err(failure) => return Err(failure),
    };
    output::print(global, &info, show)?;
    let problems = info
        .findings
        .iter()
        .filter(|finding| finding.state == FindingState::Problem)
        .count();
    match problems {
        0 => Ok(()),
        count => Err(Error::failure(format!("{count} findings keep Stillpoint from working")).into()),
    }
}

fn show(info: &DoctorInfo) -> String {
    let width = info
        .findings
        .iter()
        .map(|finding| finding.subject.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in &info.findings {
        let state = match finding.state {
            FindingState::Ok => "ok     ",
            FindingState::Note => "note   ",
            FindingState::Problem => "PROBLEM",
        };
        text += &format!("{state}  {:width$}  {}\n", finding.subject, finding.message);
        if let Some(mend) = &finding.mend {
            text += &format!("{:7}  {:width$}  -> {mend}\n", "", "");
        }
    }
    text
}
