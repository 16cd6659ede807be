// A client and a provider of the DMS's resource and bid protocols on go-libp2p, to show that the wire is nobody's own.
//
//	interop [-first] [-psk FILE] client MULTIADDR   asks a peer all that there is to ask, and prints one JSON
//	                                                       object
//	interop [-first] [-psk FILE] provider           offers an imagined machine on loopback until its standard
//	                                                       input ends
//	interop relay                                          connects others until its standard input ends
//	interop hidden MULTIADDR                               is reached through the relay there and nowhere else
//	interop job MULTIADDR FILE                             runs the job in the file at a peer, and speaks to its port
//	interop vectors FILE                                   decodes the test vectors of the wire
//	interop structs                                        prints the CBOR of the structs of an older DMS
//	interop load                                           asks many things of a peer for the benchmarks, as each line
//	                                                       of its standard input says
//
// With -first it knows only the first version of each protocol, with -psk it is in the private network of which the file
// has the key.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// choices is what this program offers.
var choices = struct {
	bidVersions []protocol.ID
	psk         pnet.PSK
}{[]protocol.ID{newerBidProtocol, bidProtocol}, nil}

func main() {
	firstVersions := flag.Bool("first", false, "know only the first version of each protocol")
	pskFile := flag.String("psk", "", "the key file of a private network")
	flag.Parse()
	if *firstVersions {
		choices.bidVersions = []protocol.ID{bidProtocol}
	}
	if err := readPSK(*pskFile); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := run(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func readPSK(name string) error {
	if name == "" {
		return nil
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	choices.psk, err = pnet.DecodeV1PSK(file)
	return err
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "client":
		return runClient(arguments[1])
	case len(arguments) == 3 && arguments[0] == "job":
		return runJob(arguments[1], arguments[2])
	case len(arguments) == 1 && arguments[0] == "provider":
		return runProvider()
	case len(arguments) == 1 && arguments[0] == "relay":
		return runRelay()
	case len(arguments) == 2 && arguments[0] == "hidden":
		return runHidden(arguments[1])
	case len(arguments) == 2 && arguments[0] == "vectors":
		return checkVectors(arguments[1])
	case len(arguments) == 1 && arguments[0] == "structs":
		return printStructs()
	case len(arguments) == 1 && arguments[0] == "load":
		return runLoad()
	}
	return fmt.Errorf("usage: [-first] [-psk FILE] client MULTIADDR | job MULTIADDR FILE | provider | relay | hidden MULTIADDR | vectors FILE | structs | load")
}

// openHost makes a host that speaks TCP, Noise and Yamux and nothing else, without bounds: the benchmarks open more
// connections than the defaults allow.
func openHost(listen ...string) (host.Host, error) {
	return libp2p.New(
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(noise.ID, noise.New),
		libp2p.PrivateNetwork(choices.psk),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ListenAddrStrings(listen...),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.ConnectionManager(connmgr.NullConnMgr{}),
	)
}

// connection says what two peers agreed on.
type connection struct {
	Transport string `json:"transport"`
	Security  string `json:"security"`
	Muxer     string `json:"muxer"`
}

func describe(conn network.Conn) connection {
	state := conn.ConnState()
	return connection{state.Transport, string(state.Security), string(state.StreamMultiplexer)}
}

// versions names what this program was built with.
func versions() map[string]string {
	found := map[string]string{"runtime": runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/libp2p/go-libp2p" {
				found["libp2p"] = module.Version
			}
		}
	}
	return found
}

func printLine(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
