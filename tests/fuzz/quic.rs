//! QUIC connection ids: an id that was encoded is decoded, and any bytes are safe.
//!
//! ```text
//! rotation:1 server_id_bytes:1 nonce_bytes:1 has_key:1 key:16 server:15 nonce:18 payload
//! ```

use holdfast::forwarding::quic_lb::{Codec, Config, ServerId};
use holdfast::wire::quic::server_chosen_id;

use crate::bytes::Bytes;

pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let (rotation, server_id_bytes, nonce_bytes) =
        (input.byte() % 8, input.byte() % 17, input.byte() % 20);
    let mut key = [0; 16];
    let has_key = input.byte() & 1 == 1;
    key.fill_with(|| input.byte());
    let key = has_key.then_some(key);
    let server = input.take(server_id_bytes.min(15).into());
    let nonce = input.take(nonce_bytes.into());
    let payload = input.take(usize::MAX);
    let config = Config { rotation, server_id_bytes, nonce_bytes, key };
    if let Some(codec) = Codec::new(&config) {
        if let Some(server) = ServerId::new(server)
            && let Some(id) = codec.encode(server, nonce)
        {
            assert_eq!(codec.decode(&id), Some(server), "{config:?} {id:?}");
            // In a short header the id is followed by other bytes.
            let packet = [&[0x40], &id[..], payload].concat();
            let found = server_chosen_id(&packet).unwrap();
            assert_eq!(codec.decode(found), Some(server), "{config:?} {packet:?}");
        }
        let _ = codec.decode(payload);
    }
    if let Some(id) = server_chosen_id(payload) {
        assert!(id.len() <= 20, "{id:?}");
    }
}
