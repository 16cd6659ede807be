// Goes the whole way, from what is free to what is free again.

use crate::cbor::{Fields, decode, map, to_json};
use crate::wire::{ALLOCATION, BID, GIB, NEWER_BID, RESOURCES, bid_lease_id, open_bid, receive, request_digest, send};
use crate::{Result, host};
use ciborium::Value;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use libp2p_stream::{Control, OpenStreamError};
use serde_json::{Value as Json, json};
use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const IN_FLIGHT: u64 = 64;
const LIMIT: Duration = Duration::from_secs(60);

pub async fn run(first: bool, address: &str) -> Result<()> {
    let address: Multiaddr = address.parse()?;
    let Some(Protocol::P2p(provider)) = address.iter().last() else {
        return Err("the address names no peer".into());
    };
    let key = Keypair::generate_ed25519();
    let connection = host::describe(&address, &key)?;
    let us = key.public().to_peer_id().to_string();
    let mut swarm = host::open(key)?;
    let control = swarm.behaviour().new_control();
    swarm.dial(address)?;
    let drive = async {
        loop {
            if let SwarmEvent::OutgoingConnectionError { error, .. } = swarm.select_next_some().await {
                return error;
            }
        }
    };
    let versions: &[&'static str] = if first { &[BID] } else { &[NEWER_BID, BID] };
    let found = tokio::select! {
        found = tokio::time::timeout(LIMIT, ask(control, provider, &us, versions)) => found??,
        error = drive => return Err(error.into()),
    };
    let mut report = found;
    report["connection"] = connection;
    report["versions"] = host::versions();
    println!("{report}");
    Ok(())
}

async fn ask(control: Control, provider: PeerId, us: &str, bid_versions: &[&'static str]) -> Result<Json> {
    let (mut queries, _) = Client::open(&control, provider, &[RESOURCES]).await?;
    let (mut bids, bid_protocol) = Client::open(&control, provider, bid_versions).await?;
    let (mut allocations, _) = Client::open(&control, provider, &[ALLOCATION]).await?;
    let mut found = json!({ "peer_id": us, "bid_protocol": bid_protocol });

    found["free_before"] = to_json(&queries.call("free", []).await?)?;
    found["pipelined"] = queries.pipeline(IN_FLIGHT).await?.into();
    found["unknown_operation"] = code(queries.call("fly", []).await)?;

    let ensemble = ensemble_on("node-of-rust", 1)?;
    let envelope = bid_on(&mut bids, &ensemble).await?;
    let provider = provider.to_string();
    let digest = request_digest(bid_protocol, &ensemble);
    let lease_id = bid_lease_id(us, &digest, "node-of-rust", &provider);
    check_bid(&envelope, us, &provider, &digest, &lease_id, &mut found)?;

    let commit = |envelope: &[u8]| [("bids", Value::Array(vec![Value::Bytes(envelope.to_vec())])), ("ttl", 60.into())];
    found["tampered"] = code(allocations.call("commit", commit(&tampered(&envelope))).await)?;
    let committed = allocations.call("commit", commit(&envelope)).await?.list("leases")?[0].clone();
    let again = allocations.call("commit", commit(&envelope)).await?.list("leases")?[0].clone();
    let fence = committed.unsigned("fence")?;
    let lease = |fence: u64| [("lease_id", lease_id.as_str().into()), ("fence", fence.into())];
    found["stale_fence"] = code(allocations.call("allocate", lease(fence + 1)).await)?;
    found["allocated"] = to_json(allocations.call("allocate", lease(fence)).await?.need("lease")?)?;
    found["free_during"] = to_json(&queries.call("free", []).await?)?;
    found["released"] = to_json(allocations.call("release", lease(fence)).await?.need("lease")?)?;
    found["free_after"] = to_json(&queries.call("free", []).await?)?;
    (found["committed"], found["again"]) = (to_json(&committed)?, to_json(&again)?);

    let refused = bids.call("bid_request", [("ensemble", ensemble_on("too much", 99)?)]).await?;
    found["refusals"] = to_json(refused.need("refusals")?)?;
    for mut client in [queries, bids, allocations] {
        client.stream.close().await?;
    }
    Ok(found)
}

async fn bid_on(bids: &mut Client, ensemble: &Value) -> Result<Vec<u8>> {
    let answer = bids.call("bid_request", [("ensemble", ensemble.clone())]).await?;
    match answer.list("bids")? {
        [Value::Bytes(envelope)] => Ok(envelope.clone()),
        _ => Err(format!("refused: {}", to_json(answer.need("refusals")?)?).into()),
    }
}

/// Believes nothing of a bid that can be computed or verified here.
fn check_bid(envelope: &[u8], us: &str, provider: &str, digest: &[u8], lease_id: &str, found: &mut Json) -> Result<()> {
    let (bid, signer) = open_bid(envelope)?;
    for (name, expected) in [("provider", provider), ("requester", us), ("lease_id", lease_id)] {
        if bid.text(name)? != expected {
            return Err(format!("{name} is {}, not {expected}", bid.text(name)?).into());
        }
    }
    if signer != provider || bid.octets("request_digest")? != digest {
        return Err(format!("a bid on another request, or signed by {signer}").into());
    }
    found["tampered_here"] = match open_bid(&tampered(envelope)) {
        Ok(_) => "opened".into(),
        Err(error) => error.to_string().into(),
    };
    found["bid"] = to_json(&bid)?;
    found["signer"] = signer.into();
    found["digest"] = to_json(&Value::Bytes(digest.to_vec()))?;
    found["lease_id"] = lease_id.into();
    Ok(())
}

fn ensemble_on(node: &str, cores: u64) -> Result<Value> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let amount = |size: u64| map([("size", size.into())]);
    let demand = map([("cpu", map([("cores", cores.into())])), ("ram", amount(GIB)), ("disk", amount(GIB))]);
    Ok(map([
        ("id", "ensemble-of-rust".into()),
        ("nonce", (now.as_nanos() as u64 >> 1).into()),
        ("deadline", (now.as_secs() + 60).into()),
        ("request", Value::Array(vec![map([("node_id", node.into()), ("resources", demand)])])),
    ]))
}

/// Changes the last byte, which is the signature's.
fn tampered(envelope: &[u8]) -> Vec<u8> {
    let mut changed = envelope.to_vec();
    *changed.last_mut().expect("an envelope has bytes") ^= 1;
    changed
}

/// The code of a refusal; what is no refusal stays an error.
fn code(called: Result<Value>) -> Result<Json> {
    match called {
        Ok(_) => Ok("not refused".into()),
        Err(error) => Ok(error.downcast::<Refused>()?.code.into()),
    }
}

#[derive(Debug)]
struct Refused {
    code: String,
    message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refused {}

/// Asks on one stream.
struct Client {
    stream: Stream,
    last: u64,
}

impl Client {
    /// Offers one version after the other, the newest first; the second value is the one that was agreed on.
    async fn open(control: &Control, peer: PeerId, versions: &[&'static str]) -> Result<(Client, &'static str)> {
        for version in versions {
            match control.clone().open_stream(peer, StreamProtocol::new(version)).await {
                Ok(stream) => return Ok((Client { stream, last: 0 }, version)),
                Err(OpenStreamError::UnsupportedProtocol(_)) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        Err(format!("the peer serves none of {versions:?}").into())
    }

    fn request<const N: usize>(&mut self, operation: &str, fields: [(&str, Value); N]) -> Value {
        self.last += 1;
        let mut entries = vec![("id".into(), self.last.into()), ("op".into(), operation.into())];
        entries.extend(fields.into_iter().map(|(name, value)| (name.into(), value)));
        Value::Map(entries)
    }

    async fn call<const N: usize>(&mut self, operation: &str, fields: [(&str, Value); N]) -> Result<Value> {
        let request = self.request(operation, fields);
        send(&mut self.stream, &[request]).await?;
        let (id, answer) = self.answer().await?;
        if id == self.last { Ok(answer) } else { Err(format!("an answer to {id} instead of {}", self.last).into()) }
    }

    /// Puts many requests into one write before it reads the first answer.
    async fn pipeline(&mut self, count: u64) -> Result<u64> {
        let mut waiting: HashSet<u64> = (self.last + 1..=self.last + count).collect();
        let requests: Vec<Value> = (0..count).map(|_| self.request("free", [])).collect();
        send(&mut self.stream, &requests).await?;
        while !waiting.is_empty() {
            let (id, _) = self.answer().await?;
            if !waiting.remove(&id) {
                return Err(format!("an answer to {id}, which was not asked").into());
            }
        }
        Ok(count)
    }

    async fn answer(&mut self) -> Result<(u64, Value)> {
        let message = decode(&receive(&mut self.stream).await?.ok_or("the stream ended before the answer")?)?;
        if let Some(error) = message.get("error") {
            let (code, message) = (error.text("code")?.into(), error.text("message")?.into());
            return Err(Box::new(Refused { code, message }));
        }
        Ok((message.unsigned("id")?, message.need("ok")?.clone()))
    }
}
