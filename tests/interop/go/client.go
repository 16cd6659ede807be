package main

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	gib         = 1 << 30
	inFlight    = 64
	clientLimit = 60 * time.Second
)

var mapType = reflect.TypeOf(map[string]any(nil))

// report is what a client prints: what it was answered, and what its own libraries made of it.
type report struct {
	Versions    map[string]string `json:"versions"`
	PeerID      string            `json:"peer_id"`
	Connection  connection        `json:"connection"`
	FreeBefore  freeResources     `json:"free_before"`
	Pipelined   int               `json:"pipelined"`
	Bid         *bid              `json:"bid"`
	Signer      string            `json:"signer"`
	Digest      octets            `json:"digest"`
	Version     protocol.ID       `json:"bid_protocol"`
	LeaseID     string            `json:"lease_id"`
	Tampered    string            `json:"tampered"`
	RefusedHere string            `json:"tampered_here"`
	Committed   lease             `json:"committed"`
	Again       lease             `json:"again"`
	StaleFence  string            `json:"stale_fence"`
	Allocated   lease             `json:"allocated"`
	FreeDuring  freeResources     `json:"free_during"`
	Released    endedLease        `json:"released"`
	FreeAfter   freeResources     `json:"free_after"`
	Refusals    []refusal         `json:"refusals"`
	UnknownCode string            `json:"unknown_operation"`
}

func runClient(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), clientLimit)
	defer cancel()
	us, err := openHost()
	if err != nil {
		return err
	}
	defer us.Close()
	them, err := peer.AddrInfoFromString(address)
	if err != nil {
		return err
	}
	if err := us.Connect(ctx, *them); err != nil {
		return err
	}
	found, err := ask(ctx, us, them.ID)
	if err != nil {
		return err
	}
	return printLine(found)
}

// ask goes the whole way, from what is free to what is free again.
func ask(ctx context.Context, us host.Host, provider peer.ID) (*report, error) {
	found := &report{
		Versions:   versions(),
		PeerID:     us.ID().String(),
		Connection: describe(us.Network().ConnsToPeer(provider)[0]),
	}
	queries, err := openStream(ctx, us, provider, resourcesProtocol)
	if err != nil {
		return nil, err
	}
	defer queries.close()
	bids, err := openStream(ctx, us, provider, choices.bidVersions...)
	if err != nil {
		return nil, err
	}
	defer bids.close()
	allocations, err := openStream(ctx, us, provider, allocationProtocol)
	if err != nil {
		return nil, err
	}
	defer allocations.close()

	if found.FreeBefore, err = call[freeResources](queries, &query{head{Op: "free"}}); err != nil {
		return nil, err
	}
	if found.Pipelined, err = pipeline(queries); err != nil {
		return nil, err
	}
	_, err = call[freeResources](queries, &query{head{Op: "fly"}})
	found.UnknownCode = code(err)
	found.Version = bids.raw.Protocol()
	envelope, err := askBid(bids, found, provider.String())
	if err != nil {
		return nil, err
	}
	if err := takeAndReturn(queries, allocations, found, envelope); err != nil {
		return nil, err
	}
	answer, err := call[bidAnswer](bids, bidOn("too much", 99))
	if err != nil {
		return nil, err
	}
	found.Refusals = answer.Refusals
	return found, nil
}

// pipeline puts many requests on one stream before it reads the first answer.
func pipeline(queries *stream) (int, error) {
	waiting := map[uint64]bool{}
	for range inFlight {
		request := &query{head{Op: "free"}}
		request.number(queries)
		waiting[request.ID] = true
		if err := queries.send(request); err != nil {
			return 0, err
		}
	}
	for len(waiting) > 0 {
		answer, err := receive[freeResources](queries)
		if err != nil {
			return 0, err
		}
		if !waiting[answer.ID] {
			return 0, fmt.Errorf("an answer to %d, which was not asked", answer.ID)
		}
		delete(waiting, answer.ID)
	}
	return inFlight, nil
}

// askBid asks for one bid, and believes nothing of it that can be computed or verified here.
func askBid(bids *stream, found *report, provider string) ([]byte, error) {
	request := bidOn("node-of-go", 1)
	answer, err := call[bidAnswer](bids, request)
	if err != nil {
		return nil, err
	}
	if len(answer.Bids) != 1 {
		return nil, fmt.Errorf("%d bids, and refusals: %v", len(answer.Bids), answer.Refusals)
	}
	envelope := answer.Bids[0]
	if found.Bid, found.Signer, err = openBid(envelope); err != nil {
		return nil, err
	}
	if _, _, refused := openBid(tampered(envelope)); refused != nil {
		found.RefusedHere = refused.Error()
	}
	asked, err := encoding.Marshal(request.Ensemble)
	if err != nil {
		return nil, err
	}
	if found.Digest, err = requestDigest(found.Version, asked); err != nil {
		return nil, err
	}
	found.LeaseID, err = bidLeaseID(found.PeerID, found.Digest, "node-of-go", provider)
	if err != nil {
		return nil, err
	}
	switch {
	case found.Signer != provider || found.Bid.Provider != provider:
		return nil, fmt.Errorf("signed by %s for %s, not by the provider", found.Signer, found.Bid.Provider)
	case found.Bid.Requester != found.PeerID:
		return nil, fmt.Errorf("a bid for %s", found.Bid.Requester)
	case !bytes.Equal(found.Bid.RequestDigest, found.Digest):
		return nil, fmt.Errorf("a bid on another request: %x is not %x", found.Bid.RequestDigest, found.Digest)
	case found.Bid.LeaseID != found.LeaseID:
		return nil, fmt.Errorf("lease id %s is not %s", found.Bid.LeaseID, found.LeaseID)
	}
	return envelope, nil
}

// takeAndReturn commits, allocates and releases, and tries on the way what has to be refused.
func takeAndReturn(queries, allocations *stream, found *report, envelope []byte) (err error) {
	_, err = call[commitAnswer](allocations, commitOf(tampered(envelope)))
	found.Tampered = code(err)
	for _, taken := range []*lease{&found.Committed, &found.Again} {
		answer, err := call[commitAnswer](allocations, commitOf(envelope))
		if err != nil {
			return err
		}
		*taken = answer.Leases[0]
	}
	fence, stale := found.Committed.Fence, found.Committed.Fence+1
	_, err = call[leaseAnswer](allocations, leaseOf("allocate", found.LeaseID, &stale))
	found.StaleFence = code(err)
	allocated, err := call[leaseAnswer](allocations, leaseOf("allocate", found.LeaseID, &fence))
	if err != nil {
		return err
	}
	found.Allocated = allocated.Lease
	if found.FreeDuring, err = call[freeResources](queries, &query{head{Op: "free"}}); err != nil {
		return err
	}
	released, err := call[releaseAnswer](allocations, leaseOf("release", found.LeaseID, &fence))
	if err != nil {
		return err
	}
	found.Released = released.Lease
	found.FreeAfter, err = call[freeResources](queries, &query{head{Op: "free"}})
	return err
}

func bidOn(node string, cores float64) *bidRequest[ensembleRequest] {
	asked := demand{CPU: cpu{Cores: cores}, RAM: ram{Size: gib}, Disk: disk{Size: gib}}
	now := time.Now()
	return &bidRequest[ensembleRequest]{head: head{Op: "bid_request"}, Ensemble: ensembleRequest{
		ID:       "ensemble-of-go",
		Nonce:    uint64(now.UnixNano()),
		Deadline: float64(now.Add(time.Minute).Unix()),
		Request:  []nodeRequest{{NodeID: node, Resources: asked}},
	}}
}

func commitOf(envelope []byte) *commitRequest {
	return &commitRequest{head: head{Op: "commit"}, Bids: []octets{envelope}, TTL: 60}
}

func leaseOf(operation, leaseID string, fence *uint64) *leaseRequest {
	return &leaseRequest{head: head{Op: operation}, LeaseID: leaseID, Fence: fence}
}

// tampered changes the last byte, which is the signature's.
func tampered(envelope []byte) []byte {
	changed := bytes.Clone(envelope)
	changed[len(changed)-1] ^= 1
	return changed
}

// Calls

type stream struct {
	frames
	raw  network.Stream
	last uint64
}

func openStream(ctx context.Context, us host.Host, them peer.ID, ids ...protocol.ID) (*stream, error) {
	raw, err := us.NewStream(ctx, them, ids...)
	if err != nil {
		return nil, err
	}
	if err := raw.SetDeadline(time.Now().Add(clientLimit)); err != nil {
		return nil, err
	}
	return &stream{frames: framesOf(raw), raw: raw}, nil
}

func (s *stream) close() { _ = s.raw.Close() }

type numbered interface{ number(*stream) }

func (h *head) number(s *stream) {
	s.last++
	h.ID = s.last
}

// call asks one thing and waits for its answer; what the provider refuses is an *errorBody.
func call[B any](s *stream, request numbered) (B, error) {
	var nothing B
	request.number(s)
	if err := s.send(request); err != nil {
		return nothing, err
	}
	answer, err := receive[B](s)
	if err == nil && answer.ID != s.last {
		err = fmt.Errorf("an answer to %d instead of %d", answer.ID, s.last)
	}
	return answer.OK, err
}

func receive[B any](s *stream) (success[B], error) {
	var answer struct {
		success[B]
		Error *errorBody `json:"error"`
	}
	raw, err := s.receive()
	if err == nil {
		err = decoding.Unmarshal(raw, &answer)
	}
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	return answer.success, err
}

func code(err error) string {
	if refused, ok := err.(*errorBody); ok {
		return refused.Code
	}
	return fmt.Sprintf("not refused: %v", err)
}

func peerIDOf(key crypto.PubKey) (string, error) {
	id, err := peer.IDFromPublicKey(key)
	return id.String(), err
}
