package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/record"
)

// machine is what this stub offers.
var machine = demand{CPU: cpu{Cores: 4}, RAM: ram{Size: 16 * gib}, Disk: disk{Size: 100 * gib}}

// provider keeps its promises in memory: enough to be asked, no more.
type provider struct {
	host   host.Host
	lock   sync.Mutex
	fence  uint64
	leases map[string]lease
	ended  map[string]endedLease
}

func runProvider() error {
	us, err := openHost("/ip4/127.0.0.1/tcp/0")
	if err != nil {
		return err
	}
	defer us.Close()
	p := &provider{host: us, leases: map[string]lease{}, ended: map[string]endedLease{}}
	us.SetStreamHandler(resourcesProtocol, p.serve(p.answerQuery))
	for _, version := range choices.bidVersions {
		us.SetStreamHandler(version, p.serve(p.bidAnswerer(version)))
	}
	us.SetStreamHandler(allocationProtocol, p.serve(p.answerAllocation))
	us.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, conn network.Conn) {
		_ = printLine(map[string]any{"connected": conn.RemotePeer().String(), "connection": describe(conn)})
	}})
	address := fmt.Sprintf("%s/p2p/%s", us.Addrs()[0], us.ID())
	ready := map[string]any{"peer_id": us.ID().String(), "addrs": []string{address}, "versions": versions()}
	if err := printLine(ready); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

type answerer func(raw []byte, asked head, caller string) (any, error)

// serve answers the requests of a stream, one after another.
func (p *provider) serve(answer answerer) network.StreamHandler {
	return func(stream network.Stream) {
		defer stream.Close()
		both, caller := framesOf(stream), stream.Conn().RemotePeer().String()
		for {
			raw, err := both.receive()
			if err != nil {
				return
			}
			if both.send(p.respond(answer, raw, caller)) != nil {
				return
			}
		}
	}
}

func (p *provider) respond(answer answerer, raw []byte, caller string) any {
	var asked head
	if err := decoding.Unmarshal(raw, &asked); err != nil {
		return failure{Error: errorBody{Code: "bad_cbor", Message: err.Error()}}
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	body, err := answer(raw, asked, caller)
	if err == nil {
		return success[any]{ID: asked.ID, OK: body}
	}
	refused, ok := err.(*errorBody)
	if !ok {
		refused = &errorBody{Code: "bad_message", Message: err.Error()}
	}
	return failure{ID: &asked.ID, Error: *refused}
}

func unknown(asked head) error {
	return &errorBody{Code: "unknown_operation", Message: "no operation " + asked.Op}
}

func (p *provider) answerQuery(_ []byte, asked head, _ string) (any, error) {
	if asked.Op != "free" {
		return nil, unknown(asked)
	}
	left := p.free()
	return freeResources{resources: granted(left), Onboarded: true, Simulated: true}, nil
}

func (p *provider) bidAnswerer(version protocol.ID) answerer {
	return func(raw []byte, asked head, caller string) (any, error) {
		return p.answerBid(version, raw, asked, caller)
	}
}

func (p *provider) answerBid(version protocol.ID, raw []byte, asked head, caller string) (any, error) {
	if asked.Op != "bid_request" {
		return nil, unknown(asked)
	}
	var request bidRequest[cbor.RawMessage]
	if err := decoding.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	var ensemble ensembleRequest
	if err := decoding.Unmarshal(request.Ensemble, &ensemble); err != nil {
		return nil, err
	}
	sum, err := requestDigest(version, request.Ensemble)
	if err != nil {
		return nil, err
	}
	offers, refusals, err := p.offers(ensemble, sum, caller)
	if err != nil || request.DryRun {
		return offerAnswer{Offers: offers, Refusals: refusals}, err
	}
	envelopes, err := p.sign(offers)
	return bidAnswer{Bids: envelopes, Refusals: refusals}, err
}

// offers bids on the nodes in their order, as long as something is left.
func (p *provider) offers(ensemble ensembleRequest, sum []byte, caller string) (bids []bid, no []refusal, err error) {
	left := p.free()
	for _, node := range ensemble.Request {
		short := shortages(node.Resources, left)
		if len(short) > 0 {
			no = append(no, refusal{NodeID: node.NodeID, Code: "resources", Message: "too little is free", Shortages: short})
			continue
		}
		left = less(left, node.Resources)
		id, err := bidLeaseID(caller, sum, node.NodeID, p.host.ID().String())
		if err != nil {
			return nil, nil, err
		}
		bids = append(bids, bid{
			RequestDigest: sum, EnsembleID: ensemble.ID, Nonce: ensemble.Nonce, NodeID: node.NodeID, LeaseID: id,
			Requester: caller, Provider: p.host.ID().String(), Demand: node.Resources, PublicPorts: node.PublicPorts,
			Resources: granted(node.Resources), ValidUntil: unixSeconds() + 300, Simulated: true,
		})
	}
	return bids, no, nil
}

func (p *provider) sign(offers []bid) (envelopes []octets, err error) {
	key := p.host.Peerstore().PrivKey(p.host.ID())
	for i := range offers {
		envelope, err := record.Seal(&offers[i], key)
		if err != nil {
			return nil, err
		}
		raw, err := envelope.Marshal()
		if err != nil {
			return nil, err
		}
		envelopes = append(envelopes, raw)
	}
	return envelopes, nil
}

func (p *provider) answerAllocation(raw []byte, asked head, caller string) (any, error) {
	if asked.Op == "commit" {
		var request commitRequest
		if err := decoding.Unmarshal(raw, &request); err != nil {
			return nil, err
		}
		return p.commit(request, caller)
	}
	var request leaseRequest
	if err := decoding.Unmarshal(raw, &request); err != nil {
		return nil, err
	}
	if over, ok := p.ended[request.LeaseID]; ok && asked.Op == "release" && over.Holder == caller {
		return releaseAnswer{over}, nil
	}
	held, err := p.lease(request, caller)
	if err != nil {
		return nil, err
	}
	switch asked.Op {
	case "allocate":
		held.State, held.TTL, held.Deadline = "allocated", 0, nil
		p.leases[held.LeaseID] = held
		return leaseAnswer{held}, nil
	case "release":
		over := endedLease{held.LeaseID, held.Holder, held.State, held.Fence, "released", unixSeconds(), ""}
		delete(p.leases, held.LeaseID)
		p.ended[held.LeaseID] = over
		return releaseAnswer{over}, nil
	}
	return nil, unknown(asked)
}

func (p *provider) lease(request leaseRequest, caller string) (lease, error) {
	held, ok := p.leases[request.LeaseID]
	switch {
	case !ok:
		return lease{}, &errorBody{Code: "not_committed", Message: "no such lease", LeaseID: request.LeaseID}
	case held.Holder != caller:
		return lease{}, &errorBody{Code: "not_holder", Message: "it is another's", LeaseID: request.LeaseID}
	case request.Fence != nil && *request.Fence != held.Fence:
		return lease{}, &errorBody{Code: "stale_fence", Message: "it is another lease", LeaseID: request.LeaseID}
	}
	return held, nil
}

// commit takes all bids or none.
func (p *provider) commit(request commitRequest, caller string) (any, error) {
	var bids []*bid
	left, now := p.free(), unixSeconds()
	for _, envelope := range request.Bids {
		offered, err := p.ownBid(envelope, caller, now)
		if err != nil {
			return nil, err
		}
		bids = append(bids, offered)
		if _, taken := p.leases[offered.LeaseID]; taken {
			continue
		}
		if short := shortages(offered.Demand, left); len(short) > 0 {
			return nil, &errorBody{Code: "insufficient", Message: "too little is free", Shortages: short}
		}
		left = less(left, offered.Demand)
	}
	answer := commitAnswer{}
	for _, offered := range bids {
		answer.Leases = append(answer.Leases, p.take(offered, request.TTL, now))
	}
	return answer, nil
}

func (p *provider) ownBid(envelope []byte, caller string, now float64) (*bid, error) {
	offered, signer, err := openBid(envelope)
	us := p.host.ID().String()
	switch {
	case err != nil:
		return nil, &errorBody{Code: "bad_signature", Message: err.Error()}
	case signer != us || offered.Provider != us:
		return nil, &errorBody{Code: "not_my_bid", Message: "the bid of " + signer}
	case offered.Requester != caller:
		return nil, &errorBody{Code: "not_your_bid", Message: "a bid for " + offered.Requester}
	case offered.ValidUntil < now:
		return nil, &errorBody{Code: "bid_expired", Message: "it was valid once"}
	}
	return offered, nil
}

func (p *provider) take(offered *bid, ttl, now float64) lease {
	if taken, ok := p.leases[offered.LeaseID]; ok {
		return taken
	}
	p.fence++
	deadline := now + ttl
	taken := lease{
		LeaseID: offered.LeaseID, Holder: offered.Requester, State: "committed", Demand: offered.Demand,
		AskedPorts: offered.PublicPorts, Resources: offered.Resources, Fence: p.fence,
		Created: now, TTL: ttl, Deadline: &deadline,
	}
	p.leases[taken.LeaseID] = taken
	return taken
}

// Amounts

func (p *provider) free() demand {
	left, now := machine, unixSeconds()
	for id, held := range p.leases {
		if held.Deadline != nil && *held.Deadline < now {
			delete(p.leases, id)
			continue
		}
		left = less(left, held.Demand)
	}
	return left
}

func less(left, taken demand) demand {
	left.CPU.Cores -= taken.CPU.Cores
	left.RAM.Size -= taken.RAM.Size
	left.Disk.Size -= taken.Disk.Size
	return left
}

func granted(asked demand) resources {
	return resources{CPU: cpu{Cores: asked.CPU.Cores}, RAM: asked.RAM, Disk: disk{Size: asked.Disk.Size}, GPUs: []gpu{}}
}

func shortages(asked, left demand) (short []shortage) {
	if asked.CPU.Cores > left.CPU.Cores {
		short = append(short, shortage{"cpu", cpu{Cores: asked.CPU.Cores}, left.CPU, machine.CPU})
	}
	if asked.RAM.Size > left.RAM.Size {
		short = append(short, shortage{"ram", asked.RAM.Size, left.RAM.Size, machine.RAM.Size})
	}
	if asked.Disk.Size > left.Disk.Size {
		short = append(short, shortage{"disk", asked.Disk.Size, left.Disk.Size, machine.Disk.Size})
	}
	if len(asked.GPUs) > 0 {
		short = append(short, shortage{"gpus", asked.GPUs, []gpu{}, []gpu{}})
	}
	return short
}

func unixSeconds() float64 { return float64(time.Now().UnixMicro()) / 1e6 }
