// Frames, digests, lease ids and signed envelopes.

use crate::Result;
use crate::cbor::{decode, encode, map, whole_numbers};
use ciborium::Value;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use libp2p::core::SignedEnvelope;
use libp2p::identity::Keypair;
use sha2::{Digest, Sha256};

pub const RESOURCES: &str = "/dms/resources/1.0.0";
pub const BID: &str = "/dms/bid/1.0.0";
pub const NEWER_BID: &str = "/dms/bid/1.1.0";
pub const ALLOCATION: &str = "/dms/allocation/1.0.0";
pub const GIB: u64 = 1 << 30;

const BID_DOMAIN: &str = "dms-bid";
const BID_PAYLOAD_TYPE: &[u8] = b"/dms/bid/1.0.0";
const MAX_FRAME: u64 = 1 << 20;

// Frames

/// The payload with its length before it, as an unsigned varint.
pub fn framed(payload: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(payload.len() + 4);
    let mut length = payload.len();
    while length >= 0x80 {
        raw.push(length as u8 | 0x80);
        length >>= 7;
    }
    raw.push(length as u8);
    raw.extend_from_slice(payload);
    raw
}

pub async fn send(stream: &mut Stream, messages: &[Value]) -> Result<()> {
    // In one write, whatever their number.
    let raw: Vec<u8> = messages.iter().flat_map(|message| framed(&encode(message))).collect();
    stream.write_all(&raw).await?;
    Ok(stream.flush().await?)
}

/// The bytes of the next message; None at the end of the stream.
pub async fn receive(stream: &mut Stream) -> Result<Option<Vec<u8>>> {
    let (mut length, mut shift) = (0u64, 0);
    loop {
        let mut octet = [0];
        if stream.read(&mut octet).await? == 0 {
            return if shift == 0 { Ok(None) } else { Err("the stream ended within a length".into()) };
        }
        length |= u64::from(octet[0] & 0x7f) << shift;
        shift += 7;
        if octet[0] & 0x80 == 0 {
            break;
        }
        if shift > 56 {
            return Err("a length of too many bytes".into());
        }
    }
    if length > MAX_FRAME {
        return Err(format!("a frame of {length} bytes").into());
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    Ok(Some(payload))
}

// Digests

pub fn sha256(raw: &[u8]) -> Vec<u8> {
    Sha256::digest(raw).to_vec()
}

/// Of an ensemble as it was sent, with every key; in 1.1.0 a number is what it is worth.
pub fn request_digest(version: &str, ensemble: &Value) -> Vec<u8> {
    sha256(&if version == NEWER_BID { encode(&whole_numbers(ensemble)) } else { encode(ensemble) })
}

pub fn bid_lease_id(requester: &str, digest: &[u8], node_id: &str, provider: &str) -> String {
    let named = map([
        ("requester", requester.into()),
        ("request_digest", Value::Bytes(digest.to_vec())),
        ("node_id", node_id.into()),
        ("provider", provider.into()),
    ]);
    hex::encode(sha256(&encode(&named)))[..32].to_owned()
}

// Envelopes

pub fn seal_bid(bid: &Value, key: &Keypair) -> Result<Vec<u8>> {
    let envelope = SignedEnvelope::new(key, BID_DOMAIN.into(), BID_PAYLOAD_TYPE.into(), encode(bid))?;
    Ok(envelope.into_protobuf_encoding())
}

/// The bid in an envelope and the peer id of its signer, both as libp2p found them.
pub fn open_bid(raw: &[u8]) -> Result<(Value, String)> {
    let envelope = SignedEnvelope::from_protobuf_encoding(raw)?;
    // The library passes over unknown fields, and an envelope has one encoding.
    if envelope.clone().into_protobuf_encoding() != raw {
        return Err("the envelope is encoded in another way than protobuf writers do".into());
    }
    let (payload, key) = envelope.payload_and_signing_key(BID_DOMAIN.into(), BID_PAYLOAD_TYPE)?;
    Ok((decode(payload)?, key.to_peer_id().to_string()))
}
