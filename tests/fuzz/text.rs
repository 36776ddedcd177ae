//! Configuration, neighbours and captures: an error or a value, and never a panic.

use holdfast::config::{self, Config};
use holdfast::net::NicIndex;
use holdfast::replay::Capture;

/// Whatever is accepted can be checked against a machine, and be replayed.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match config::parse(text, "f.toml") {
        Ok(config) => {
            let machine = config::machine::Machine::default();
            let _ = config::machine::check(&config, &machine);
            let _ = config::machine::hints(&config);
        }
        Err(errors) => {
            let messages = errors.messages();
            assert!(!messages.is_empty(), "a refusal without a reason");
            assert!(messages.iter().all(|message| message.starts_with("f.toml")), "{messages:?}");
        }
    }
}

pub fn neighbours(input: &[u8]) {
    thread_local! {
        static CONFIG: Config =
            config::parse(include_str!("worlds/nat.toml"), "nat.toml").unwrap();
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    CONFIG.with(|config| {
        if let Err(errors) = config::parse_neighbours(text, "n.toml", config) {
            assert!(!errors.messages().is_empty(), "a refusal without a reason");
        }
    });
}

/// Packets are within the file.
pub fn capture(input: &[u8]) {
    let interfaces = ["front".to_owned(), "back".to_owned()];
    let Ok(mut capture) = Capture::new(input, interfaces.into(), NicIndex(0)) else { return };
    let mut bytes = 0;
    while let Ok(Some(packet)) = capture.next_packet() {
        bytes += packet.data.len();
        assert!(bytes <= input.len(), "more data than the file has");
    }
}
