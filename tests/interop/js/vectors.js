import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { LengthPrefixedDecoder } from '@libp2p/utils'
import {
  AdvertiseAnswer, AdvertsAnswer, Bid, BidAnswer, CommitAnswer, Event, Failure, FreeResources, JobAnswer, JobEvent,
  JobOutput, LeaseAnswer, ListAnswer, OfferAnswer, ReleaseAnswer, Resources, Success, requests
} from './messages.js'
import { struct } from './structs.js'
import { bidLeaseId, decode, decodeAsSent, encode, hexadecimal, printLine, requestDigest, versions } from './wire.js'

const answers = {
  'the answer to free': Success(FreeResources),
  'the answer to allocated and usage': Success(Resources),
  'bids on some nodes, refusals of others': Success(BidAnswer),
  'a refusal that names all its reasons': Success(BidAnswer),
  'a lease with the names of its ensemble and its node': Success(LeaseAnswer),
  'an allocation with a keep-alive, a longest time and a notice': Success(LeaseAnswer),
  'the answer to list, with an evicted lease': Success(ListAnswer),
  'the answer to a dry run': Success(OfferAnswer),
  'the answer to commit': Success(CommitAnswer),
  'the answer to renew and allocate': Success(LeaseAnswer),
  'the answer to release': Success(ReleaseAnswer),
  'the answer to list': Success(ListAnswer),
  'the answer to advertise': Success(AdvertiseAnswer),
  'the answer to adverts': Success(AdvertsAnswer),
  'the answer to deliver_bids': Success(struct({})),
  'a lease that is charged to the grants of a token': Success(LeaseAnswer),
  'the answer to job_start and job_status': Success(JobAnswer),
  'the answer to job_stop': Success(JobAnswer),
  'the answer to tunnel': Success(struct({})),
  'an event of job_watch': JobEvent(JobAnswer),
  'an event of job_logs': JobEvent(JobOutput),
  'an event of watch': Event,
  'the end of watch': Success(struct({}))
}

/** Decodes every frame through the struct of its meaning, which has to find the meaning and nothing less. */
export const checkVectors = (file) => {
  const { frames, derived } = JSON.parse(readFileSync(file, 'utf8'))
  for (const { meaning, hex, message } of frames) {
    const read = structOf(meaning, message)
    assert.ok(read, `no struct for: ${meaning}`)
    assert.deepEqual(read(decode(unframed(hex))), withBytes(message), meaning)
  }
  checkDerived(derived, frames)
  printLine({ versions: versions(), frames: frames.map(({ meaning }) => meaning), derived: true })
}

const structOf = (meaning, message) => {
  if (message.op !== undefined) return requests[message.op]
  return message.error !== undefined ? Failure : answers[meaning]
}

/** Computes what a requester and a provider compute: digests, lease ids, and the bytes under a signature. */
const checkDerived = (derived, frames) => {
  const { requester, node_id: nodeId, provider, is } = derived.lease_id
  const newer = requestDigest(decode(octets(derived.request_deterministic)))
  assert.equal(hexadecimal(newer), derived.request_digest_1_1)
  const sent = frames.find(({ message }) => message.op === 'bid_request').hex
  for (const ensemble of [decodeAsSent(octets(derived.request_deterministic)), decodeAsSent(unframed(sent)).ensemble]) {
    const digest = requestDigest(ensemble)
    assert.equal(hexadecimal(digest), derived.request_digest)
    assert.equal(bidLeaseId(requester, digest, nodeId, provider), is)
  }
  const bid = octets(derived.bid_deterministic)
  assert.deepEqual(Bid(decode(bid)), withBytes(derived.bid))
  assert.equal(hexadecimal(encode(decodeAsSent(bid))), derived.bid_deterministic)
}

const octets = (hex) => Uint8Array.from(Buffer.from(hex, 'hex'))

const unframed = (hex) => {
  const messages = [...new LengthPrefixedDecoder().decode(octets(hex))]
  assert.equal(messages.length, 1)
  return messages[0].subarray()
}

/** The meaning, with its byte strings as such. */
const withBytes = (value) => {
  if (Array.isArray(value)) return value.map(withBytes)
  if (typeof value !== 'object' || value === null) return value
  if (typeof value.hex === 'string') return octets(value.hex)
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, withBytes(one)]))
}
