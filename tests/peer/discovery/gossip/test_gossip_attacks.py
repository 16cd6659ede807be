"""A raw libp2p peer opens gossip's streams and sends anything: gossip and everything else continue."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX

from dms_host import attach_protocols, dial, host_addresses, open_host, open_stream
from dms_host.errors import DialError
from dms_host.keys.identity import Identity, new_identity
from dms_peer.discovery.gossip.limits import GossipLimits
from dms_protocols.wire.frames import FrameReader, encode_frame

TOPIC = "/test/topic/1.0.0"
MESHSUB = "/meshsub/1.1.0"
SEQNO = b"\x00" * 8


def sealed(identity: Identity, data: bytes, *, seqno: bytes = SEQNO, **changes: Any) -> rpc_pb2.Message:
    """A message signed as strict signing requires, and changed after that."""
    origin = ID.from_base58(identity.peer_id).to_bytes()
    message = rpc_pb2.Message(data=data, topicIDs=[TOPIC], from_id=origin, seqno=seqno)
    pair = identity.key_pair()
    message.signature = pair.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
    for name, value in changes.items():
        if name == "topicIDs":
            del message.topicIDs[:]
            message.topicIDs.extend(value)
        else:
            setattr(message, name, value)
    return message


def payload(frame: bytes) -> bytes:
    reader = FrameReader(1 << 20)
    reader.feed(frame)
    (one,) = (part for part in reader if isinstance(part, bytes))
    return one


def rpc(**fields: Any) -> bytes:
    return encode_frame(rpc_pb2.RPC(**fields).SerializeToString())


def control(**fields: Any) -> bytes:
    return rpc(control=rpc_pb2.ControlMessage(**fields))


def published(**changes: Any) -> bytes:
    return rpc(publish=[sealed(new_identity(), b"bad", **changes)])


def subscriptions(topics: list[str]) -> bytes:
    return rpc(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in topics])


IDS = [bytes([number % 256, number // 256]) * 20 for number in range(5000)]
ATTACKS = {
    "garbage": encode_frame(b"\xff" * 100),
    "no frame": b"\xff" * 20,
    "a length that is not minimal": b"\x80\x00",
    "a huge length": b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "half a frame": encode_frame(bytes(1000))[:500],
    "nothing": b"",
    "an empty RPC": encode_frame(b""),
    "many empty RPCs": encode_frame(b"") * 10_000,
    "a from that is no key": published(from_id=b"\xff\xff", key=b"\x08\x01\x12\x04zzzz"),
    "a from that is no point": published(from_id=bytes.fromhex("002408011220") + b"\xff" * 32),
    "a from of an unknown type": published(from_id=bytes.fromhex("002508091220") + b"\xff" * 33),
    "an empty from": published(from_id=b""),
    "a key that is garbage": published(key=b"\xff" * 40),
    "a signature of another": published(signature=b"\x01" * 64),
    "no signature": published(signature=b""),
    "a short signature": published(signature=b"\x01"),
    "no number": published(seqno=b""),
    "a long number": published(seqno=b"1" * 1000),
    "no topic": published(topicIDs=[]),
    "thousands of topics": published(topicIDs=[f"t{number}" for number in range(5000)]),
    "an unknown topic": published(topicIDs=["/unknown"]),
    "large data": rpc(publish=[sealed(new_identity(), bytes(200_000))]),
    "an RPC above the limit": encode_frame(bytes(300_000)),
    "thousands of subscriptions": subscriptions([f"t{number}" for number in range(9000)]),
    "one subscription a thousand times": subscriptions([TOPIC] * 5000),
    "subscriptions that come and go": subscriptions([TOPIC]) * 500,
    "ihave of much": control(ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=IDS)]),
    "ihave of odd ids": control(ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"", b"abc", b"\xff" * 9000])]),
    "ihave of unknown topics": control(ihave=[rpc_pb2.ControlIHave(topicID=f"t{n}") for n in range(3000)]),
    "iwant of much": control(iwant=[rpc_pb2.ControlIWant(messageIDs=IDS)]) * 50,
    "graft of unknown topics": control(graft=[rpc_pb2.ControlGraft(topicID=f"t{n}") for n in range(5000)]),
    "graft a thousand times": control(graft=[rpc_pb2.ControlGraft(topicID=TOPIC)] * 1000) * 100,
    "prune for ever": control(prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=2**64 - 1)]),
    "prune with peers": control(
        prune=[rpc_pb2.ControlPrune(topicID=TOPIC, peers=[rpc_pb2.PeerInfo(peerID=b"\xff", signedPeerRecord=b"\xff")])]
    ),
    "idontwant of much": control(idontwant=[rpc_pb2.ControlIDontWant(messageIDs=IDS)]),
    "extensions": control(extensions=rpc_pb2.ControlExtensions(topicObservation=True)),
    "observe": control(observe=[rpc_pb2.ControlObserve(topicID=TOPIC)]),
    "a sender record that is none": rpc(senderRecord=b"\xff" * 100),
    "thousands of messages": rpc(publish=[sealed(new_identity(), b"x", signature=b"\x01" * 64)] * 1000) * 5,
}


@pytest.fixture
def attacked(gossipers: Any, eventually: Any) -> Any:
    """Two good peers, the first of which also serves another protocol, and the host of an attacker, connected to it."""

    @asynccontextmanager
    async def open_all(limits: GossipLimits | None = None) -> AsyncIterator[Any]:
        async def echo(stream: Any, peer_id: str) -> None:
            await stream.send_all(await stream.receive_some())

        async with (
            gossipers(2, limits=limits) as (victim, good),
            open_host(new_identity()) as attacker,
            attach_protocols(victim.host, {"/echo/1.0.0": echo}),
        ):
            await dial(attacker, host_addresses(victim.host)[0])
            yield Attack(victim, good, attacker, eventually)

    return open_all


class Attack:
    def __init__(self, victim: Any, good: Any, attacker: Any, eventually: Any) -> None:
        self.victim = victim
        self.good = good
        self.attacker = attacker
        self.eventually = eventually
        self.sent = 0

    async def send(self, data: bytes, *, end: bool = True) -> Any:
        """Send on a new stream, as far as the victim accepts it."""
        stream = await open_stream(self.attacker, self.victim.peer_id, [MESHSUB])
        try:
            await stream.send_all(data)
            if end:
                await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return stream

    async def assert_all_goes_on(self) -> None:
        async with await open_stream(self.good.host, self.victim.peer_id, ["/echo/1.0.0"]) as stream:
            await stream.send_all(b"alive")
            assert await stream.receive_some() == b"alive"
        self.sent += 1
        for publisher, listener in ((self.good, self.victim), (self.victim, self.good)):
            news = b"good %d" % self.sent
            await publisher.gossip.publish(TOPIC, news)
            await self.eventually(lambda listener=listener, news=news: news in listener.heard)
        assert self.victim.gossip.statistics.restarts == 0


async def read_to_the_end(stream: Any) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        return


@pytest.mark.parametrize("name", ATTACKS)
async def test_gossip_withstands(attacked: Any, name: str) -> None:
    async with attacked() as attack:
        stream = await attack.send(ATTACKS[name])
        # When the victim has ended its side, it has read everything that was sent.
        with trio.fail_after(20):
            await read_to_the_end(stream)
        await attack.assert_all_goes_on()
        pubsub = attack.victim.gossip._pubsub
        assert set(pubsub.peer_topics) <= {TOPIC}
        assert b"bad" not in attack.victim.heard
        assert all(until < 2**32 for peers in pubsub.router.back_off.values() for until in peers.values())


async def test_gossip_withstands_all_of_it_again_and_again(attacked: Any, eventually: Any) -> None:
    # Never ignored, so that everything gets as far as possible.
    async with attacked(GossipLimits(penalties=10**6)) as attack:
        for name in sorted(ATTACKS):
            try:
                stream = await attack.send(ATTACKS[name])
                with trio.fail_after(20):
                    await read_to_the_end(stream)
            except DialError:
                await dial(attack.attacker, host_addresses(attack.victim.host)[0])
        await attack.assert_all_goes_on()


async def test_gossip_withstands_what_chance_makes_of_good_messages(attacked: Any) -> None:
    rng = random.Random(11)
    identity = new_identity()
    good = [
        rpc_pb2.RPC(publish=[sealed(identity, b"x", seqno=bytes([number]) * 8)]).SerializeToString()
        for number in range(8)
    ] + [payload(one) for one in (ATTACKS["prune with peers"], ATTACKS["ihave of odd ids"], ATTACKS["observe"])]
    async with attacked(GossipLimits(penalties=10**6)) as attack:
        for _ in range(60):
            frames = []
            for _ in range(20):
                raw = bytearray(rng.choice(good))
                for _ in range(rng.randrange(1, 6)):
                    raw[rng.randrange(len(raw))] = rng.randrange(256)
                frames.append(encode_frame(bytes(raw)))
            stream = await attack.send(b"".join(frames))
            with trio.fail_after(20):
                await read_to_the_end(stream)
        await attack.assert_all_goes_on()


async def test_a_peer_that_sends_garbage_is_shunned_and_others_are_not(attacked: Any) -> None:
    async with attacked(GossipLimits(penalties=3)) as attack:
        for _ in range(3):
            await read_to_the_end(await attack.send(encode_frame(b"\xff" * 100)))
        ignored = ID.from_base58(attack.attacker.get_id().to_base58()).to_bytes()
        assert attack.victim.gossip._scores.ignores(ignored)
        stream = await attack.send(subscriptions([TOPIC]), end=False)
        await read_to_the_end(stream)
        await attack.assert_all_goes_on()


async def test_streams_that_stay_silent_are_few(attacked: Any) -> None:
    async with attacked() as attack:
        streams = [await attack.send(b"\x10", end=False) for _ in range(20)]
        await attack.assert_all_goes_on()
        pubsub = attack.victim.gossip._pubsub
        assert pubsub._streams[attack.attacker.get_id()] == GossipLimits().peer_streams
        for stream in streams:
            await stream.areset()
        await attack.eventually(lambda: attack.attacker.get_id() not in pubsub._streams)


async def test_a_flood_is_cut_to_a_bound(attacked: Any) -> None:
    limits = GossipLimits(peer_messages=0.001, peer_messages_burst=5)
    identity = new_identity()
    async with attacked(limits) as attack:
        messages = [sealed(identity, b"x %d" % number, seqno=bytes([number]) * 8) for number in range(100)]
        await read_to_the_end(await attack.send(rpc(publish=messages)))
        assert len([data for data in attack.victim.asked if data.startswith(b"x")]) == 5
        assert attack.victim.gossip.statistics.dropped == 95


async def test_a_peer_that_takes_no_answers_holds_up_nobody(attacked: Any) -> None:
    async with attacked() as attack:
        # It subscribes to the topic, but reads nothing on the stream that is opened to it.
        async def silent(stream: Any, peer_id: str) -> None:
            await trio.sleep_forever()

        async with attach_protocols(attack.attacker, {MESHSUB: silent}, 0.1):
            await attack.send(subscriptions([TOPIC]), end=False)
            await attack.eventually(lambda: attack.victim.gossip.peers(TOPIC) == 2)
            big = bytes(GossipLimits().message_bytes)
            for number in range(60):
                await attack.victim.gossip.publish(TOPIC, b"%d" % number + big[8:])
            await attack.assert_all_goes_on()


async def test_without_the_reader_of_rpcs_the_library_dies(attacked: Any, eventually: Any) -> None:
    """Shows why the measure is needed: the same message, passed to the library unchanged, ends its service."""
    async with attacked(GossipLimits(first_pause=0.05)) as attack:
        pubsub = attack.victim.gossip._pubsub
        bad = rpc_pb2.RPC()
        bad.ParseFromString(payload(ATTACKS["a from that is no key"]))
        pubsub.manager.run_task(pubsub.push_msg, attack.attacker.get_id(), bad.publish[0])
        # The protection works: gossip restarts.
        await eventually(lambda: attack.victim.gossip.statistics.restarts == 1)
        await eventually(lambda: attack.victim.gossip.peers(TOPIC) == 1 and attack.good.gossip.peers(TOPIC) == 1, 30)
        await attack.good.gossip.publish(TOPIC, b"after")
        await eventually(lambda: b"after" in attack.victim.heard)


async def test_seen_messages_are_bounded(attacked: Any) -> None:
    identity = new_identity()
    async with attacked(GossipLimits(seen=50, messages_burst=1000, peer_messages_burst=1000)) as attack:
        messages = [sealed(identity, b"x", seqno=number.to_bytes(8, "big")) for number in range(200)]
        await read_to_the_end(await attack.send(rpc(publish=messages)))
        await attack.assert_all_goes_on()
        pubsub = attack.victim.gossip._pubsub
        assert len(pubsub.seen_messages) <= 50


def test_the_library_has_what_is_replaced() -> None:
    """The names of the library that are overridden or read. A new release may have moved them."""
    from libp2p.pubsub.pubsub import Pubsub

    for name in (
        "stream_handler", "push_msg", "handle_subscription", "is_peer_blacklisted", "_handle_dead_peer",
        "_schedule_peer_stream_retry", "get_hello_packet", "_send_recent_messages_to_new_peer",
    ):  # fmt: skip
        assert callable(getattr(Pubsub, name)), name
    for name in ("handle_rpc", "add_peer", "remove_peer", "flush_pending_messages", "on_peer_subscribed"):
        assert callable(getattr(GossipSub, name)), name
