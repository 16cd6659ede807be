import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { multiaddr } from '@multiformats/multiaddr'
import { Client, LIMIT, check, code, ensembleOn } from './client.js'
import { BidAnswer, CommitAnswer, JobAnswer, JobOutput, LeaseAnswer, ReleaseAnswer } from './messages.js'
import { struct } from './structs.js'
import { ALLOCATION, BID, NEWER_BID, encode, openHost, printLine } from './wire.js'

const JOB = '/dms/job/1.0.0'
const TUNNEL = '/dms/tunnel/1.0.0'

/**
 * Takes a node, runs the job in the file on it, speaks to its first port, and waits for its end. The job has to say
 * "ready" when it listens, to answer what it is sent when that has ended, and to exit then.
 */
export const runJob = async (_, address, file) => {
  const job = JSON.parse(readFileSync(file, 'utf8'))
  const { host } = await openHost()
  try {
    const connection = await host.dial(multiaddr(address), { signal: AbortSignal.timeout(LIMIT) })
    printLine(await goThroughJob(host.peerId.toString(), connection, job))
  } finally {
    await host.stop()
  }
}

const goThroughJob = async (us, connection, job) => {
  const bids = await Client.open(connection, [NEWER_BID, BID])
  const allocations = await Client.open(connection, ALLOCATION)
  const jobs = await Client.open(connection, JOB)
  const ensemble = ensembleOn('job-of-js', 1)
  ensemble.request[0].executors = [job.execution.type]
  const offers = await bids.call('bid_request', { ensemble }, BidAnswer)
  check(offers.bids.length === 1, `refused: ${JSON.stringify(offers.refusals)}`)
  const { leases: [taken] } = await allocations.call('commit', { bids: offers.bids, ttl: 60 }, CommitAnswer)
  const lease = { lease_id: taken.lease_id, fence: taken.fence }
  await allocations.call('allocate', lease, LeaseAnswer)

  const start = async (document) => (await jobs.call('job_start', { ...lease, job: document }, JobAnswer)).job
  // What has its default value is left out of the document, so that it is sent as it is digested.
  const found = { peer_id: us, digest: new Uint8Array(createHash('sha256').update(encode(job)).digest()) }
  found.started = await start(job)
  found.again = await start(job)
  found.conflict = await code(start({ ...job, remove: true }))

  found.output = ''
  const logs = await Client.open(connection, JOB)
  for await (const { data } of logs.watch('job_logs', { lease_id: lease.lease_id, follow: true }, JobOutput)) {
    found.output += Buffer.from(data).toString()
    if (found.output.includes('ready')) break
  }
  const { private: port } = job.ports[0]
  found.answer = await speak(connection, lease.lease_id, port, 'hello')
  found.closed = await code(speak(connection, lease.lease_id, port + 1, 'hello'))
  found.states = []
  for await (const { job: status } of jobs.watch('job_watch', { lease_id: lease.lease_id }, JobAnswer)) {
    found.states.push(status.state)
    found.exit = status.exit
  }
  found.rest = ''
  const rest = { lease_id: lease.lease_id, offset: Buffer.byteLength(found.output) }
  for await (const { data } of jobs.watch('job_logs', rest, JobOutput)) found.rest += Buffer.from(data).toString()
  found.released = (await allocations.call('release', lease, ReleaseAnswer)).lease.lease_id
  return found
}

/** Sends text to a port of the job, ends it, and reads the answer to its end. */
const speak = async (connection, leaseId, port, text) => {
  const tunnel = await Client.open(connection, TUNNEL)
  await tunnel.call('tunnel', { lease_id: leaseId, port }, struct({}))
  // From here on each byte is one of the connection.
  const stream = tunnel.frames.unwrap()
  stream.send(Buffer.from(text))
  await stream.close({ signal: AbortSignal.timeout(LIMIT) })
  const received = []
  for await (const piece of stream) received.push(Buffer.from(piece.subarray()))
  return Buffer.concat(received).toString()
}
