// A host that speaks TCP, Noise and Yamux and nothing else.

use crate::Result;
use libp2p::core::upgrade::UpgradeInfo;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, Swarm, SwarmBuilder, noise, tcp, yamux};
use serde_json::{Value as Json, json};
use std::time::Duration;

pub fn open(key: Keypair) -> Result<Swarm<libp2p_stream::Behaviour>> {
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)?
        .with_behaviour(|_| libp2p_stream::Behaviour::new())?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    Ok(swarm)
}

/// What two peers agreed on. The library does not say; but this host offers one security and one muxer.
pub fn describe(address: &Multiaddr, key: &Keypair) -> Result<Json> {
    let over_tcp = address.iter().any(|part| matches!(part, libp2p::multiaddr::Protocol::Tcp(_)));
    Ok(json!({
        "transport": if over_tcp { "tcp" } else { "unknown" },
        "security": noise::Config::new(key)?.protocol_info().next(),
        "muxer": yamux::Config::default().protocol_info().next(),
    }))
}

pub fn versions() -> Json {
    let lock = include_str!("../Cargo.lock");
    let entry = lock.split("[[package]]").find(|entry| entry.contains("\nname = \"libp2p\"\n"));
    let version = entry.and_then(|entry| entry.split('"').nth(3));
    json!({ "runtime": env!("COMPILER"), "libp2p": version })
}
