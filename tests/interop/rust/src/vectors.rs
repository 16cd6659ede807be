// Decodes the test vectors, computes what is derived, and opens the envelopes.

use crate::cbor::{Fields, decode, encode, to_json, whole_numbers};
use crate::wire::{BID, NEWER_BID, bid_lease_id, framed, open_bid, request_digest, seal_bid, sha256};
use crate::{Result, host};
use libp2p::identity::Keypair;
use serde_json::{Value as Json, json};

pub fn check(file: &str) -> Result<()> {
    let known: Json = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let frames = known["frames"].as_array().ok_or("no frames")?;
    let mut meanings = Vec::new();
    for frame in frames {
        let meaning = text(frame, "meaning")?;
        same(&to_json(&decode(&unframed(&octets(frame, "hex")?)?)?)?, &frame["message"], meaning)?;
        meanings.push(meaning);
    }
    let sent = frames.iter().find(|frame| frame["message"]["op"] == "bid_request").ok_or("no bid request")?;
    check_derived(&known["derived"], &octets(sent, "hex")?)?;
    check_numbers(&known["derived"]["hard_numbers"])?;
    check_envelopes(&known["derived"]["envelopes"])?;
    println!("{}", json!({ "versions": host::versions(), "frames": meanings, "derived": true, "envelopes": true }));
    Ok(())
}

/// What a requester and a provider compute: digests, lease ids, and the bytes under a signature.
fn check_derived(derived: &Json, sent: &[u8]) -> Result<()> {
    let alone = decode(&octets(derived, "request_deterministic")?)?;
    let as_sent = decode(&unframed(sent)?)?.need("ensemble")?.clone();
    for ensemble in [alone, as_sent] {
        let digest = request_digest(BID, &ensemble);
        same(&hex::encode(&digest).into(), &derived["request_digest"], "request_digest")?;
        let newer = request_digest(NEWER_BID, &ensemble);
        same(&hex::encode(newer).into(), &derived["request_digest_1_1"], "request_digest_1_1")?;
        let one = &derived["lease_id"];
        let id = bid_lease_id(text(one, "requester")?, &digest, text(one, "node_id")?, text(one, "provider")?);
        same(&id.into(), &one["is"], "lease_id")?;
    }
    for name in ["bid", "advert", "broadcast"] {
        let raw = octets(derived, &format!("{name}_deterministic"))?;
        let value = decode(&raw)?;
        same(&to_json(&value)?, &derived[name], name)?;
        same(&hex::encode(encode(&value)).into(), &hex::encode(&raw).into(), name)?;
    }
    Ok(())
}

fn check_numbers(numbers: &Json) -> Result<()> {
    let older = decode(&octets(numbers, "map_1_0_deterministic")?)?;
    let newer = whole_numbers(&older);
    for (value, raw, digest) in
        [(older, "map_1_0_deterministic", "request_digest"), (newer, "map_1_1_deterministic", "request_digest_1_1")]
    {
        let encoded = encode(&value);
        same(&hex::encode(&encoded).into(), &numbers[raw], raw)?;
        same(&hex::encode(sha256(&encoded)).into(), &numbers[digest], digest)?;
    }
    Ok(())
}

/// Signs the bid with the key of the vector, opens the envelope, and opens none of those that were changed.
fn check_envelopes(envelopes: &Json) -> Result<()> {
    let key = Keypair::ed25519_from_bytes(octets(envelopes, "seed")?)?;
    let raw = octets(envelopes, "envelope")?;
    let (bid, signer) = open_bid(&raw)?;
    same(&hex::encode(encode(&bid)).into(), &envelopes["payload"], "the payload of the envelope")?;
    same(&signer.into(), &key.public().to_peer_id().to_string().into(), "the signer of the envelope")?;
    same(&hex::encode(seal_bid(&bid, &key)?).into(), &envelopes["envelope"], "the envelope")?;
    for variant in envelopes["refused"].as_array().ok_or("no refused envelopes")? {
        if open_bid(&octets(variant, "hex")?).is_ok() {
            return Err(format!("opened, and should not be: {}", variant["meaning"]).into());
        }
    }
    Ok(())
}

fn same(found: &Json, expected: &Json, what: &str) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found} instead of {expected}").into()) }
}

fn text<'a>(map: &'a Json, name: &str) -> Result<&'a str> {
    map[name].as_str().ok_or_else(|| format!("{name} is no text").into())
}

fn octets(map: &Json, name: &str) -> Result<Vec<u8>> {
    Ok(hex::decode(text(map, name)?)?)
}

fn unframed(raw: &[u8]) -> Result<Vec<u8>> {
    let header = raw.iter().position(|octet| octet & 0x80 == 0).ok_or("a length without an end")? + 1;
    let payload = raw[header..].to_vec();
    if framed(&payload) == raw { Ok(payload) } else { Err("the length is another".into()) }
}
