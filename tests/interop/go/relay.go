package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// runRelay connects others until its standard input ends.
func runRelay() error {
	relay, err := libp2p.New(
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.EnableRelayService(),
		libp2p.ForceReachabilityPublic(),
	)
	if err != nil {
		return err
	}
	return wait(relay, fmt.Sprintf("%s/p2p/%s", relay.Addrs()[0], relay.ID()))
}

// runHidden listens nowhere and is reached through the relay at an address until its standard input ends.
func runHidden(address string) error {
	hidden, err := libp2p.New(libp2p.Transport(tcp.NewTCPTransport), libp2p.NoListenAddrs, libp2p.EnableRelay())
	if err != nil {
		return err
	}
	relay, err := peer.AddrInfoFromString(address)
	if err != nil {
		return err
	}
	if err := hidden.Connect(context.Background(), *relay); err != nil {
		return err
	}
	if _, err := client.Reserve(context.Background(), hidden, *relay); err != nil {
		return err
	}
	return wait(hidden, fmt.Sprintf("%s/p2p-circuit/p2p/%s", address, hidden.ID()))
}

func wait(one host.Host, address string) error {
	ready := map[string]any{"event": "ready", "peer_id": one.ID().String(), "addrs": []string{address}}
	if err := printLine(ready); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return one.Close()
}
