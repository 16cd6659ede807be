// A peer in Go that is found and finds by Kademlia provider records and by mDNS: what it sees, it prints as JSON lines.
//
// Usage: go-discovery BOOTSTRAP_MULTIADDR CLASS_TO_FIND CLASS_TO_PROVIDE
// It goes on until its standard input ends.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	mh "github.com/multiformats/go-multihash"
)

const patience = 30 * time.Second

type event struct {
	Event  string   `json:"event"`
	PeerID string   `json:"peer_id,omitempty"`
	Addrs  []string `json:"addrs,omitempty"`
}

var printing sync.Mutex

func tell(what string, info peer.AddrInfo) {
	said := event{Event: what, PeerID: info.ID.String()}
	for _, address := range info.Addrs {
		said.Addrs = append(said.Addrs, address.String())
	}
	line, err := json.Marshal(said)
	if err != nil {
		fail(err)
	}
	printing.Lock()
	defer printing.Unlock()
	fmt.Println(string(line))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

type heard struct{ own peer.ID }

func (h heard) HandlePeerFound(info peer.AddrInfo) {
	if info.ID != h.own {
		tell("mdns", info)
	}
}

// The CID that stands for a capability class: codec raw, and the SHA-256 of its name.
func class(name string) cid.Cid {
	sum, err := mh.Sum([]byte(name), mh.SHA2_256, -1)
	if err != nil {
		fail(err)
	}
	return cid.NewCidV1(cid.Raw, sum)
}

func join(node host.Host, bootstrap string) *dht.IpfsDHT {
	// The prefix makes the protocol id /dms/kad/1.0.0. Loopback addresses count, as all of this is on one machine.
	table, err := dht.New(node, dht.ProtocolPrefix("/dms"), dht.Mode(dht.ModeServer), dht.AddressFilter(nil))
	if err != nil {
		fail(err)
	}
	info, err := peer.AddrInfoFromString(bootstrap)
	if err != nil {
		fail(err)
	}
	if err := node.Connect(context.Background(), *info); err != nil {
		fail(err)
	}
	for begun := time.Now(); table.RoutingTable().Size() == 0; time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > patience {
			fail(fmt.Errorf("nobody came into the routing table"))
		}
	}
	return table
}

func main() {
	if len(os.Args) != 4 {
		fail(fmt.Errorf("usage: go-discovery BOOTSTRAP_MULTIADDR CLASS_TO_FIND CLASS_TO_PROVIDE"))
	}
	node, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		fail(err)
	}
	if err := mdns.NewMdnsService(node, "", heard{node.ID()}).Start(); err != nil {
		fail(err)
	}
	table := join(node, os.Args[1])
	tell("ready", peer.AddrInfo{ID: node.ID(), Addrs: node.Addrs()})
	limited, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for info := range table.FindProvidersAsync(limited, class(os.Args[2]), 20) {
		tell("found", info)
	}
	if err := table.Provide(limited, class(os.Args[3]), true); err != nil {
		fail(err)
	}
	tell("provided", peer.AddrInfo{ID: node.ID()})
	_, _ = io.Copy(io.Discard, os.Stdin)
}
