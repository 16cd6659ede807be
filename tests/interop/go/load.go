package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-msgio"
)

const (
	mib         = 1 << 20
	orderLimit  = 120 * time.Second
	dialsAtOnce = 8
	// Every so many bids one signature is verified: verifying all would take a core from whoever makes them.
	verifyEvery = 16
)

// order is one line of standard input: what to ask of whom, by how many at once, for how long.
type order struct {
	Measure string  `json:"measure"`
	Address string  `json:"address"`
	AtOnce  int     `json:"at_once"`
	Seconds float64 `json:"seconds"`
	WarmUp  float64 `json:"warm_up"`
	Count   int     `json:"count"`
}

// load is what the orders share: a host with its connections, and those that only stay open.
type load struct {
	us   host.Host
	idle []host.Host
}

// runLoad obeys orders until its standard input ends, and answers each with one line.
func runLoad() error {
	us, err := openHost()
	if err != nil {
		return err
	}
	defer us.Close()
	l := &load{us: us}
	if err := printLine(map[string]any{"ready": true, "versions": versions()}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		value, err := l.obey(o)
		if err != nil {
			return fmt.Errorf("%s: %w", o.Measure, err)
		}
		if err := printLine(map[string]any{"value": value}); err != nil {
			return err
		}
	}
	return nil
}

func (l *load) obey(o order) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), orderLimit)
	defer cancel()
	if o.Measure == "leave" {
		return 0, l.leave()
	}
	them, err := peer.AddrInfoFromString(o.Address)
	if err != nil {
		return 0, err
	}
	switch o.Measure {
	case "queries":
		return l.queries(ctx, *them, o)
	case "one_shot":
		return l.oneShots(ctx, *them, o)
	case "connect":
		return l.connects(ctx, *them, o)
	case "bids":
		return l.bids(ctx, *them, o)
	case "commits":
		return l.commits(ctx, *them, o)
	case "idle":
		return float64(o.Count), l.stay(ctx, *them, o.Count)
	}
	return 0, errors.New("unknown measure")
}

// Counting

// counter counts what is done once the warm-up is over, and says when to stop: not before something was counted.
type counter struct {
	begin, end time.Time
	done, late atomic.Int64
}

func newCounter(o order) *counter {
	begin := time.Now().Add(seconds(o.WarmUp))
	return &counter{begin: begin, end: begin.Add(seconds(o.Seconds))}
}

// count notes one; it is false when the time is over.
func (c *counter) count() bool {
	now := time.Now()
	if now.Before(c.begin) {
		return true
	}
	if now.Before(c.end) {
		c.done.Add(1)
		return true
	}
	if c.done.CompareAndSwap(0, 1) {
		c.late.Store(int64(now.Sub(c.end)))
	}
	return false
}

func (c *counter) perSecond() float64 {
	took := c.end.Sub(c.begin) + time.Duration(c.late.Load())
	return float64(c.done.Load()) / took.Seconds()
}

func seconds(value float64) time.Duration { return time.Duration(value * float64(time.Second)) }

// Measures

func (l *load) queries(ctx context.Context, them peer.AddrInfo, o order) (float64, error) {
	c := newCounter(o)
	err := l.pipelined(ctx, them, queries(o.AtOnce, c.count))
	return c.perSecond(), err
}

// queries asks what is free until `more` is false.
func queries(atOnce int, more func() bool) exchange {
	return exchange{
		protocol: resourcesProtocol,
		atOnce:   atOnce,
		request:  func(id uint64) (any, bool) { return &query{head{ID: id, Op: "free"}}, true },
		answer:   func(cbor.RawMessage) (bool, error) { return more(), nil },
	}
}

func (l *load) oneShots(ctx context.Context, them peer.AddrInfo, o order) (float64, error) {
	if err := l.us.Connect(ctx, them); err != nil {
		return 0, err
	}
	c := newCounter(o)
	err := atOnce(o.AtOnce, func() error {
		for {
			if err := askOnce(ctx, l.us, them.ID); err != nil {
				return err
			}
			if !c.count() {
				return nil
			}
		}
	})
	return c.perSecond(), err
}

// connects is the median of the milliseconds from a socket that is not open to the first answer.
func (l *load) connects(ctx context.Context, them peer.AddrInfo, o order) (float64, error) {
	var took []float64
	for range o.Count {
		if err := l.us.Network().ClosePeer(them.ID); err != nil {
			return 0, err
		}
		// A stranger's view: nothing is known of the other side but its address.
		l.us.Peerstore().RemovePeer(them.ID)
		begin := time.Now()
		if err := l.us.Connect(ctx, them); err != nil {
			return 0, err
		}
		if err := askOnce(ctx, l.us, them.ID); err != nil {
			return 0, err
		}
		took = append(took, float64(time.Since(begin).Microseconds())/1000)
	}
	return median(took), nil
}

func askOnce(ctx context.Context, us host.Host, them peer.ID) error {
	opened, err := openStream(ctx, us, them, resourcesProtocol)
	if err != nil {
		return err
	}
	defer opened.close()
	_, err = call[cbor.RawMessage](opened, &query{head{Op: "free"}})
	return err
}

func (l *load) bids(ctx context.Context, them peer.AddrInfo, o order) (float64, error) {
	c, seen := newCounter(o), map[string]bool{}
	err := l.pipelined(ctx, them, exchange{
		protocol: bidProtocol,
		atOnce:   o.AtOnce,
		request:  func(id uint64) (any, bool) { return askForBid(id, benchmarkDemand), true },
		answer: func(raw cbor.RawMessage) (bool, error) {
			_, err := newEnvelope(raw, seen)
			return err == nil && c.count(), err
		},
	})
	return c.perSecond(), err
}

// newEnvelope is the one envelope of an answer, which must not have been there before.
func newEnvelope(raw cbor.RawMessage, seen map[string]bool) (octets, error) {
	var answer bidAnswer
	if err := decoding.Unmarshal(raw, &answer); err != nil {
		return nil, err
	}
	if len(answer.Bids) != 1 {
		return nil, fmt.Errorf("%d bids, and refusals: %v", len(answer.Bids), answer.Refusals)
	}
	envelope := answer.Bids[0]
	// The end of an envelope is its signature.
	signature := string(envelope[len(envelope)-64:])
	if seen[signature] {
		return nil, errors.New("a bid that was given before")
	}
	seen[signature] = true
	if len(seen)%verifyEvery == 0 {
		if _, _, err := openBid(envelope); err != nil {
			return nil, err
		}
	}
	return envelope, nil
}

// commits takes bids that were asked for before the clock runs, and gives them all back after.
func (l *load) commits(ctx context.Context, them peer.AddrInfo, o order) (float64, error) {
	envelopes, err := l.gather(ctx, them, o)
	if err != nil {
		return 0, err
	}
	var taken []string
	begin := time.Now()
	err = l.pipelined(ctx, them, exchange{
		protocol: allocationProtocol,
		atOnce:   o.AtOnce,
		request: func(id uint64) (any, bool) {
			if id > uint64(len(envelopes)) || time.Since(begin) > seconds(o.Seconds) {
				return nil, false
			}
			request := commitOf(envelopes[id-1])
			request.ID = id
			return request, true
		},
		answer: func(raw cbor.RawMessage) (bool, error) {
			var answer commitAnswer
			if err := decoding.Unmarshal(raw, &answer); err != nil {
				return false, err
			}
			taken = append(taken, answer.Leases[0].LeaseID)
			return true, nil
		},
	})
	rate := float64(len(taken)) / time.Since(begin).Seconds()
	if err != nil {
		return 0, err
	}
	return rate, l.release(ctx, them, taken)
}

func (l *load) gather(ctx context.Context, them peer.AddrInfo, o order) (envelopes []octets, err error) {
	seen := map[string]bool{}
	err = l.pipelined(ctx, them, exchange{
		protocol: bidProtocol,
		atOnce:   o.AtOnce,
		request: func(id uint64) (any, bool) {
			return askForBid(id, smallDemand), id <= uint64(o.Count)
		},
		answer: func(raw cbor.RawMessage) (bool, error) {
			envelope, err := newEnvelope(raw, seen)
			envelopes = append(envelopes, envelope)
			return true, err
		},
	})
	return envelopes, err
}

func (l *load) release(ctx context.Context, them peer.AddrInfo, leases []string) error {
	return l.pipelined(ctx, them, exchange{
		protocol: allocationProtocol,
		atOnce:   dialsAtOnce,
		request: func(id uint64) (any, bool) {
			if id > uint64(len(leases)) {
				return nil, false
			}
			request := leaseOf("release", leases[id-1], nil)
			request.ID = id
			return request, true
		},
		answer: func(cbor.RawMessage) (bool, error) { return true, nil },
	})
}

var (
	benchmarkDemand = demand{
		CPU: cpu{Cores: 2}, RAM: ram{Size: 4 * gib}, Disk: disk{Size: gib}, GPUs: []gpu{{VRAM: 8 * gib}},
	}
	smallDemand = demand{CPU: cpu{Cores: 0.1}, RAM: ram{Size: gib}, GPUs: []gpu{{VRAM: mib}}}
)

func askForBid(id uint64, asked demand) *bidRequest[ensembleRequest] {
	now := time.Now()
	return &bidRequest[ensembleRequest]{head: head{ID: id, Op: "bid_request"}, Ensemble: ensembleRequest{
		ID:       "benchmark",
		Nonce:    uint64(now.UnixNano()),
		Deadline: float64(now.UnixMicro())/1e6 + 60,
		Request:  []nodeRequest{{NodeID: "node", Resources: asked}},
	}}
}

// Idle connections

// stay opens connections of as many peers, and keeps them.
func (l *load) stay(ctx context.Context, them peer.AddrInfo, count int) error {
	var lock sync.Mutex
	wanted := count - len(l.idle)
	return atOnce(dialsAtOnce, func() error {
		for {
			lock.Lock()
			wanted--
			enough := wanted < 0
			lock.Unlock()
			if enough {
				return nil
			}
			one, err := openHost()
			if err != nil {
				return err
			}
			lock.Lock()
			l.idle = append(l.idle, one)
			lock.Unlock()
			if err := one.Connect(ctx, them); err != nil {
				return err
			}
			if err := askOnce(ctx, one, them.ID); err != nil {
				return err
			}
		}
	})
}

// leave closes them all.
func (l *load) leave() error {
	var failures []error
	for _, one := range l.idle {
		failures = append(failures, one.Close())
	}
	l.idle = nil
	return errors.Join(failures...)
}

// Many at once

// exchange is many requests on one stream, so many of them waiting for an answer at the same time. `request` makes the
// one with an id, or says that there is none any more; `answer` says whether to go on.
type exchange struct {
	protocol protocol.ID
	atOnce   int
	request  func(id uint64) (any, bool)
	answer   func(raw cbor.RawMessage) (bool, error)
}

// pipelined asks as long as the exchange goes on, ends its side of the stream, and reads until the other side ends too.
func (l *load) pipelined(ctx context.Context, them peer.AddrInfo, what exchange) error {
	if err := l.us.Connect(ctx, them); err != nil {
		return err
	}
	opened, err := l.us.NewStream(ctx, them.ID, what.protocol)
	if err != nil {
		return err
	}
	defer opened.Reset()
	turns, over := make(chan struct{}, what.atOnce), make(chan struct{})
	for range what.atOnce {
		turns <- struct{}{}
	}
	asked := make(chan askedOf, 1)
	go func() { asked <- what.ask(opened, turns, over) }()
	answered, err := what.listen(opened, turns, over)
	if err != nil {
		return err
	}
	last := <-asked
	if last.err == nil && last.count != answered {
		last.err = fmt.Errorf("%d answers to %d requests", answered, last.count)
	}
	return last.err
}

type askedOf struct {
	count uint64
	err   error
}

// ask writes a request for every turn; what can be written together is.
func (e exchange) ask(opened network.Stream, turns, over <-chan struct{}) (asked askedOf) {
	buffered := bufio.NewWriterSize(opened, 1<<16)
	writer := msgio.NewVarintWriter(buffered)
	for e.wait(buffered, turns, over) {
		request, more := e.request(asked.count + 1)
		if !more {
			break
		}
		raw, err := encoding.Marshal(request)
		if err == nil {
			err = writer.WriteMsg(raw)
		}
		if err != nil {
			asked.err = err
			return asked
		}
		asked.count++
	}
	asked.err = errors.Join(buffered.Flush(), opened.CloseWrite())
	return asked
}

// wait is true when another request may be made; whoever has to wait sends first what there is.
func (e exchange) wait(buffered *bufio.Writer, turns, over <-chan struct{}) bool {
	if len(turns) == 0 && buffered.Flush() != nil {
		return false
	}
	select {
	case <-over:
		return false
	case <-turns:
		return true
	}
}

// listen reads answers until the other side has no more.
func (e exchange) listen(opened network.Stream, turns chan<- struct{}, over chan<- struct{}) (uint64, error) {
	reader := msgio.NewVarintReaderSize(bufio.NewReaderSize(opened, 1<<16), maxFrame)
	going := true
	stop := func() {
		if going {
			going = false
			close(over)
		}
	}
	defer stop()
	for answered := uint64(0); ; answered++ {
		raw, err := reader.ReadMsg()
		if err == io.EOF {
			return answered, nil
		}
		if err != nil {
			return answered, err
		}
		more, err := e.take(raw)
		if err != nil {
			return answered, err
		}
		if !more {
			stop()
		}
		if going {
			turns <- struct{}{}
		}
	}
}

func (e exchange) take(raw []byte) (bool, error) {
	var answer struct {
		success[cbor.RawMessage]
		Error *errorBody `json:"error"`
	}
	if err := decoding.Unmarshal(raw, &answer); err != nil {
		return false, err
	}
	if answer.Error != nil {
		return false, answer.Error
	}
	return e.answer(answer.OK)
}

func median(values []float64) float64 {
	slices.Sort(values)
	middle := len(values) / 2
	if len(values)%2 == 1 {
		return values[middle]
	}
	return (values[middle-1] + values[middle]) / 2
}

// atOnce runs so many of the same, and gives the first error.
func atOnce(count int, run func() error) error {
	failures := make(chan error, count)
	for range count {
		go func() { failures <- run() }()
	}
	var first error
	for range count {
		if err := <-failures; err != nil && first == nil {
			first = err
		}
	}
	return first
}
