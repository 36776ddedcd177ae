//! Packets of clients and backends through a whole worker.
//!
//! ```text
//! mode:1 { op:1 length:2 data:length }...
//! op  bit 0     NIC
//!     bit 1     set checksums right first
//!     bits 2-4  time before: 0, 10 ms, 100 ms, ... 100 s
//!     bit 5     data is not a packet, but changes of the reply to the last packet sent
//!     bit 6     with bit 5: the reply goes on with the TCP connection: numbers, flags and checksums
//! ```

use std::time::Duration;

use crate::bytes::Bytes;
use crate::checksum::repair;
use crate::player::with_player;

/// Packets of an input at most; more say nothing new.
const PACKETS: usize = 64;

pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    with_player(input.byte(), |player| {
        let mut last: Option<(u8, Vec<u8>)> = None;
        for _ in 0..PACKETS {
            if input.is_empty() {
                break;
            }
            let op = input.byte();
            let length = input.word();
            let data = input.take(length.into());
            let wait = u32::from(op >> 2 & 7);
            if wait > 0 {
                player.wait(Duration::from_millis(10_u64.pow(wait.min(5))));
            }
            let (nic, mut packet) = match (&last, op & 32) {
                (Some((nic, sent)), 32) => (*nic, reply(sent, data, op & 64 != 0)),
                _ => (op & 1, data.to_vec()),
            };
            if op & 2 != 0 || op & 96 == 96 {
                repair(&mut packet);
            }
            let decision = player.deliver(nic, &packet);
            if let Some(sent) = decision.sent.into_iter().next_back() {
                last = Some((sent.nic.0, sent.bytes));
            }
        }
    });
}

/// The packet with source and destination exchanged, and bytes changed: (distance, value) pairs. The
/// packet `goes_on` with its connection.
fn reply(sent: &[u8], changes: &[u8], goes_on: bool) -> Vec<u8> {
    let mut packet = sent.to_vec();
    let mut swap = |a: usize, b: usize, len: usize| {
        if b + len <= packet.len() {
            (0..len).for_each(|i| packet.swap(a + i, b + i));
        }
    };
    swap(0, 6, 6);
    let tcp = match sent.get(12..15) {
        Some([0x08, 0, 0x45]) => {
            swap(26, 30, 4);
            swap(34, 36, 2);
            34
        }
        Some([0x86, 0xdd, _]) => {
            swap(22, 38, 16);
            swap(54, 56, 2);
            54
        }
        _ => usize::MAX,
    };
    if let Some(header) = packet.get_mut(tcp..).filter(|rest| goes_on && rest.len() >= 20) {
        go_on(header);
    }
    for change in changes.chunks_exact(2) {
        if let Some(byte) = packet.get_mut(usize::from(change[0])) {
            *byte = change[1];
        }
    }
    packet
}

/// Turns a TCP header into that of the answer: a SYN is acknowledged by a SYN, any other segment by an
/// ACK, each with the numbers that follow.
fn go_on(header: &mut [u8]) {
    let number = |at: usize| u32::from_be_bytes(*header[at..].first_chunk().unwrap());
    let (sequence, acknowledgment, flags) = (number(4), number(8), header[13]);
    let opens = flags & 0x12 == 2;
    // The first number of the answering end.
    let ours: u32 = if opens { 0x9000_0000 } else { acknowledgment };
    let theirs = sequence.wrapping_add(u32::from(flags & 2 != 0));
    header[4..8].copy_from_slice(&ours.to_be_bytes());
    header[8..12].copy_from_slice(&theirs.to_be_bytes());
    header[13] = if opens { 0x12 } else { 0x10 };
}
