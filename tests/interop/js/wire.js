// CBOR, digests, signed envelopes and hosts.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { RecordEnvelope } from '@libp2p/peer-record'
import { tcp } from '@libp2p/tcp'
import * as cborg from 'cborg'
import { createLibp2p } from 'libp2p'
import { Bid } from './messages.js'

export const RESOURCES = '/dms/resources/1.0.0'
export const BID = '/dms/bid/1.0.0'
export const NEWER_BID = '/dms/bid/1.1.0'
export const ALLOCATION = '/dms/allocation/1.0.0'

const BID_DOMAIN = 'dms-bid'
const BID_PAYLOAD_TYPE = new TextEncoder().encode('/dms/bid/1.0.0')

export const GIB = 2 ** 30

// CBOR

const strict = {
  strict: true,
  allowBigInt: true,
  allowIndefinite: false,
  allowUndefined: false,
  allowInfinity: false,
  allowNaN: false,
  rejectDuplicateMapKeys: true
}

export const decode = (raw) => cborg.decode(raw.subarray(), strict)

/** The deterministic encoding of RFC 8949, 4.2.1, which digests and signatures need and nothing else minds. */
export const encode = (value) => cborg.encode(value, { ...cborg.rfc8949EncodeOptions, typeEncoders })

// JavaScript has one type of number: 2.0 would be read and written again as 2, whose digest is another one. What is to
// be encoded again as it came is therefore read with its floats kept apart.
class Float {
  constructor (value) {
    this.value = value
  }
}

class FloatKeeper extends cborg.Tokenizer {
  next () {
    const token = super.next()
    if (!cborg.Type.equals(token.type, cborg.Type.float)) return token
    return new cborg.Token(token.type, new Float(token.value), token.encodedLength)
  }
}

const typeEncoders = {
  Object: (value) => value instanceof Float ? [new cborg.Token(cborg.Type.float, value.value)] : null
}

export const decodeAsSent = (raw) => {
  return cborg.decode(raw.subarray(), { ...strict, tokenizer: new FloatKeeper(raw.subarray(), strict) })
}

// Digests

const sha256 = (raw) => new Uint8Array(createHash('sha256').update(raw).digest())

export const hexadecimal = (raw) => Buffer.from(raw).toString('hex')

/**
 * Of an ensemble's map as it is sent: made here, or read with decodeAsSent for 1.0.0. In 1.1.0 a number is what it is
 * worth, which is all that decode tells.
 */
export const requestDigest = (ensemble) => sha256(encode(ensemble))

export const bidLeaseId = (requester, digest, nodeId, provider) => {
  const named = { requester, request_digest: digest, node_id: nodeId, provider }
  return hexadecimal(sha256(encode(named))).slice(0, 32)
}

// Envelopes

export const sealBid = async (bid, privateKey) => {
  const record = { domain: BID_DOMAIN, codec: BID_PAYLOAD_TYPE, marshal: () => encode(bid) }
  return (await RecordEnvelope.seal(record, privateKey)).marshal()
}

/** The bid in an envelope and the peer id of its signer, both as libp2p found them. */
export const openBid = async (raw) => {
  const envelope = await RecordEnvelope.openAndCertify(raw, BID_DOMAIN)
  if (hexadecimal(envelope.payloadType) !== hexadecimal(BID_PAYLOAD_TYPE)) {
    throw new Error('the envelope holds something else')
  }
  return { bid: Bid(decode(envelope.payload), 'bid'), signer: peerIdFromPublicKey(envelope.publicKey).toString() }
}

// Hosts

/** A host that speaks TCP, Noise and Yamux and nothing else, and its key. */
export const openHost = async (...listen) => {
  const privateKey = await generateKeyPair('Ed25519')
  const host = await createLibp2p({
    privateKey,
    addresses: { listen },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // Five a second and 300 in all, unless said otherwise: every command of dms-peer is a connection, and the benchmarks
    // open a thousand.
    connectionManager: { inboundConnectionThreshold: 1000, maxConnections: 2000, maxIncomingPendingConnections: 100 },
    services: { identify: identify() }
  })
  return { host, privateKey }
}

/** What two peers agreed on. */
export const describe = (connection) => ({
  transport: connection.remoteAddr.getComponents().some(({ name }) => name === 'tcp') ? 'tcp' : 'unknown',
  security: connection.encryption,
  muxer: connection.multiplexer
})

export const versions = () => {
  const installed = new URL('node_modules/libp2p/package.json', import.meta.url)
  return { runtime: process.version, libp2p: JSON.parse(readFileSync(installed, 'utf8')).version }
}

/** One line of JSON, byte strings as {"hex": ...} like in the test vectors. */
export const printLine = (value) => {
  console.log(JSON.stringify(value, (_, one) => one instanceof Uint8Array ? { hex: hexadecimal(one) } : one))
}
