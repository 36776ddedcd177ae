//! Writes a pcapng file with the decision on every packet, as packet comments.
//!
//! The file has one interface per NIC, with the frames that were sent by it, and one interface per
//! kind of packet that was not sent, with the packets as captured.

use std::io::Write;
use std::time::Duration;

use super::capture::Captured;
use super::decision::{Decision, Sent, Verdict};
use super::pcapng::Writer;

/// Interfaces that are not NICs, with the description of their packets.
const PSEUDO: [(&str, &str); 3] = [
    ("dropped", "packets that a worker dropped, as they came"),
    ("kernel", "packets that the XDP program leaves to the kernel, as they came"),
    ("truncated", "packets that were not replayed: the capture does not have all of them"),
];
/// Longest comment, in bytes: an option of pcapng has a length of 16 bits.
const MAX_COMMENT: usize = 32_000;

/// Reason why the story could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot be written: {0}")]
pub struct StoryError(String);

impl From<std::io::Error> for StoryError {
    fn from(error: std::io::Error) -> Self {
        Self(crate::format::reason(&error))
    }
}

/// A story being written.
pub struct Story<W: Write> {
    writer: Writer<W>,
    /// Number of NIC interfaces; the other interfaces follow.
    nics: u32,
}

impl<W: Write> Story<W> {
    /// Begins a file. `interfaces` are the NICs; `note` is the comment on the whole file.
    ///
    /// # Errors
    /// [`StoryError`].
    pub fn new(writer: W, interfaces: &[String], note: &str) -> Result<Self, StoryError> {
        let application = concat!("holdfast ", env!("CARGO_PKG_VERSION"), " replay");
        let mut writer = Writer::new(writer, application, note)?;
        let nics =
            interfaces.iter().map(|name| (name.as_str(), "frames that were sent by this NIC"));
        for (name, description) in nics.chain(PSEUDO) {
            writer.interface(name, description)?;
        }
        Ok(Self { writer, nics: u32::try_from(interfaces.len()).unwrap_or(u32::MAX) })
    }

    /// Writes the decision on a packet, unless the packet is parked.
    ///
    /// # Errors
    /// [`StoryError`].
    pub fn write(
        &mut self,
        captured: &Captured<'_>,
        decision: &Decision,
    ) -> Result<(), StoryError> {
        for sent in &decision.unasked {
            self.sent(sent, decision.ended, UNASKED)?;
        }
        let comment = comment(decision);
        let pseudo = match decision.verdict {
            Verdict::Kernel => Some(1),
            Verdict::Truncated => Some(2),
            Verdict::Parked => return Ok(()),
            Verdict::Transmit | Verdict::Drop | Verdict::Reply => {
                (!decision.own_frame).then_some(0)
            }
        };
        if let Some(pseudo) = pseudo {
            let (data, len) = (captured.data, captured.original_len);
            self.packet(self.nics + pseudo, decision.ended, data, len, &comment)?;
        }
        for sent in &decision.sent {
            self.sent(sent, decision.ended, &comment)?;
        }
        Ok(())
    }

    /// Flushes the output.
    ///
    /// # Errors
    /// [`StoryError`].
    pub fn finish(self) -> Result<(), StoryError> {
        Ok(self.writer.finish()?)
    }

    fn sent(&mut self, sent: &Sent, time: Duration, comment: &str) -> Result<(), StoryError> {
        let len = u32::try_from(sent.bytes.len()).unwrap_or(u32::MAX);
        self.packet(sent.nic.0.into(), time, &sent.bytes, len, comment)
    }

    fn packet(
        &mut self,
        interface_id: u32,
        timestamp: Duration,
        data: &[u8],
        original_len: u32,
        comment: &str,
    ) -> Result<(), StoryError> {
        let captured = u32::try_from(data.len()).unwrap_or(u32::MAX);
        // The capture may give a wrong length.
        let original_len = original_len.max(captured);
        Ok(self.writer.packet(interface_id, timestamp, data, original_len, comment)?)
    }
}

/// Comment on a frame that no packet caused.
const UNASKED: &str = "index=- verdict=- vip=- backend=- flow=- reason=-\n\
                       sweep: sent between packets: a probe to a silent end of a flow that is cut";

/// Builds the comment: the first line is for programs, the others are the steps of the explanation.
fn comment(decision: &Decision) -> String {
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut comment = format!(
        "index={} verdict={} vip={} backend={} flow={} reason={}",
        decision.index,
        decision.verdict.as_str(),
        or(&decision.vip),
        or(&decision.backend),
        decision.flow.as_str(),
        decision.reason.unwrap_or("-")
    );
    for step in &decision.steps {
        comment += &format!("\n{}: {}: {}", step.stage, step.outcome, step.why);
    }
    if comment.len() > MAX_COMMENT {
        let end = (0..=MAX_COMMENT).rev().find(|&end| comment.is_char_boundary(end));
        comment.truncate(end.unwrap_or_default());
        comment += "\n...";
    }
    comment
}
