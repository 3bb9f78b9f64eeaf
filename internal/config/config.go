// Package config is what a server or an agent can be told: one struct per role, from which the
// reference is generated, so that neither can drift from the other.
//
// Guaranteed: what was loaded has exactly the fields of the struct, each within its limits; every
// finding names file, line and column, and all of them are given at once; an empty file is a valid
// configuration of a server, and an agent's needs no more than what its attestation method needs.
// Not guaranteed: that what it names exists. The roles find that out when they start.
//
// Configuration holds no secret value, only the places where they are. This package imports leaves
// and the contract of attestation; which methods there are it is told.
package config

import (
	"fmt"
	"path/filepath"
	"time"
)

// Size is a number of bytes, written as 4096, 64KiB, 1MiB or 2GiB.
type Size int64

// Server is the configuration of `bailment server`.
type Server struct {
	Data         string                `yaml:"data" default:"/var/lib/bailment" doc:"Directory with one subdirectory for each environment, made by bailment init. Readable by the server's user only."`
	Environments []string              `yaml:"environments" doc:"Names of the environments to serve. Empty: every one that the data directory has."`
	Listen       string                `yaml:"listen" default:"127.0.0.1:8400" doc:"Address of the API: HTTPS with TLS 1.3 only. Port 0 takes a free one."`
	OpsListen    string                `yaml:"ops_listen" default:"127.0.0.1:8401" doc:"Address of /livez, /readyz and /metrics in plain HTTP; it must be a loopback address. \"none\" turns it off."`
	ServerID     string                `yaml:"server_id" doc:"Name of this server in its SPIFFE ID, /server/ID: letters, digits, '.' and '-'. Empty: the host's name."`
	RootHolders  map[string]RootHolder `yaml:"root_holders" doc:"Where the root key of an environment is, by the environment's name. Default: the file root.key in the environment's directory."`
	Limits       Limits                `yaml:"limits" doc:"What strangers and callers can make the server spend."`
	Timeouts     Timeouts              `yaml:"timeouts" doc:"How long the server waits for whom."`
	Notify       Notify                `yaml:"notify" doc:"How persons are told of changes and revocations. Who is told of what is the bundle's say."`
	Log          Log                   `yaml:"log" doc:"Structured log on standard error. It never holds values."`
}

// RootHolder says where an environment's root key is.
type RootHolder struct {
	Kind     string `yaml:"kind" default:"file" one:"file" doc:"Kind of root holder; file is for the development class only."`
	Location string `yaml:"location" doc:"Where it is, in the terms of its kind: for file, an absolute path. Empty: root.key in the environment's directory."`
	// Next is there for the time of a move: afterwards its kind and location become those above.
	Next NextHolder `yaml:"next" doc:"Another root key, beside the present one, to which the keys can be moved by an approved change (bailment key custody)."`
}

// NextHolder says where the root key is that an environment's keys may be moved to.
type NextHolder struct {
	Kind     string `yaml:"kind" default:"file" one:"file" doc:"Kind of root holder."`
	Location string `yaml:"location" doc:"Where it is, in the terms of its kind. Empty: there is none."`
}

// Limits of a server.
type Limits struct {
	RequestBytes      Size `yaml:"request_bytes" default:"1MiB" min:"4096" max:"67108864" doc:"Largest request."`
	BundleBytes       Size `yaml:"bundle_bytes" default:"12MiB" min:"4096" max:"67108864" doc:"Largest request that proposes a bundle; only operators send these."`
	HeaderBytes       Size `yaml:"header_bytes" default:"16KiB" min:"4096" max:"1048576" doc:"Largest request header."`
	RequestMemory     Size `yaml:"request_memory" default:"64MiB" min:"1048576" doc:"Most memory that all requests being received may take together, beyond 4 KiB each. Callers without a session share half of it; one source or identity has an eighth, or room for one request."`
	Connections       int  `yaml:"connections" default:"8192" min:"1" max:"1000000" doc:"Connections at a time. A quarter is kept for those that proved an identity; the longest idle of the others make room for new ones. One identity has an eighth; its connections beyond are like the others."`
	SourceConnections int  `yaml:"source_connections" default:"1024" min:"1" max:"1000000" doc:"Connections at a time from one source: an IPv4 address, or an IPv6 /64."`
	SourceHandshakes  Rate `yaml:"source_handshakes" default:"200/s 1000" doc:"New connections from one source. A TLS handshake costs about a millisecond of CPU."`
	SourceRequests    Rate `yaml:"source_requests" default:"20000/s 40000" doc:"Requests from one source. Those over connections with a certificate of the environment have a limit of their own, of the same size."`
	IdentityRequests  Rate `yaml:"identity_requests" default:"5000/s 10000" doc:"Requests of one identity."`
	IdentitySessions  Rate `yaml:"identity_sessions" default:"5/s 1000" doc:"Sessions that one identity opens: its own, and those of processes on it. Each is remembered for an hour after its end, and its key for a day. Each KiB of claims counts as one more."`
	UnprovedAttempts  Rate `yaml:"unproved_attempts" default:"20/s 200" doc:"Failed attestations, renewals and logins from one source, for each person, join token, session or, at a first attestation, session key that they are about. What strangers can make up has sixteen times that together, for each method. Successful ones don't count, but dry runs and offers do. Each 64 KiB of evidence counts as one more."`
	Queue             int  `yaml:"queue" default:"4096" min:"1" max:"65536" doc:"Requests that wait for the ledger; beyond it the answer is limited (overloaded), at once."`
	IdentityStreams   int  `yaml:"identity_streams" default:"16" min:"1" max:"1024" doc:"Streams (watch, tail, rewrap) of one identity at a time."`
	ConnectionStreams int  `yaml:"connection_streams" default:"100" min:"1" max:"1024" doc:"Requests at a time on one HTTP/2 connection. Clients take 100 for granted (RFC 9113 §6.5.2): with fewer, a burst of requests becomes a burst of connections."`
	// A request is open from its header until its answer was taken.
	OpenRequests       int `yaml:"open_requests" default:"16384" min:"1" max:"1000000" doc:"Requests at a time, streams too. One counts until its answer was taken. One identity has an eighth, or room for one connection's."`
	SourceOpenRequests int `yaml:"source_open_requests" default:"2048" min:"1" max:"1000000" doc:"Requests at a time from one source."`
	UnprovedRequests   int `yaml:"unproved_requests" default:"2048" min:"1" max:"1000000" doc:"Requests at a time over connections that proved no identity; one source has an eighth of it."`
	UnprovedStreams    int `yaml:"unproved_streams" default:"8" min:"1" max:"1024" doc:"Requests at a time over one connection that proved no identity."`
}

// Timeouts of a server.
type Timeouts struct {
	ReadHeader time.Duration `yaml:"read_header" default:"5s" min:"100ms" max:"1m" doc:"TLS handshake, and a request's header."`
	Read       time.Duration `yaml:"read" default:"10s" min:"100ms" max:"5m" doc:"A whole request, however it trickles in."`
	ReadBundle time.Duration `yaml:"read_bundle" default:"1m" min:"100ms" max:"10m" doc:"A whole request that proposes a bundle."`
	Write      time.Duration `yaml:"write" default:"30s" min:"1s" max:"10m" doc:"Deciding and answering a request; for a stream, sending one message."`
	Idle       time.Duration `yaml:"idle" default:"3m" min:"1s" max:"1h" doc:"A connection without a request."`
	// The shorter times of who proved no identity.
	UnprovedIdle  time.Duration `yaml:"unproved_idle" default:"10s" min:"100ms" max:"1h" doc:"A connection without a request that proved no identity."`
	UnprovedWrite time.Duration `yaml:"unproved_write" default:"5s" min:"100ms" max:"10m" doc:"Sending an answer over a connection that proved no identity."`
	Shutdown      time.Duration `yaml:"shutdown" default:"20s" min:"100ms" max:"10m" doc:"Finishing what is under way when the server is told to stop."`
}

// Notify is what a bundle has no say in: which program runs on the server's machine, and what is asked in its networks.
type Notify struct {
	Mail    []string      `yaml:"mail" doc:"Command that sends a mail, which it gets on standard input with its addresses in the header: an absolute path and arguments, as [/usr/sbin/sendmail, -t, -i]. No shell reads it. Empty: no mails can be sent."`
	From    string        `yaml:"from" doc:"Sender's address in mails. Empty: the command says."`
	Allow   []string      `yaml:"allow" doc:"Networks in which webhooks may be beside public addresses, as 10.1.2.0/24. Loopback, link-local, private and other special addresses are refused otherwise, whatever name led there."`
	Timeout time.Duration `yaml:"timeout" default:"10s" min:"100ms" max:"1m" doc:"One attempt to tell somebody. There are six within eight minutes."`
}

// Log says what is logged and how.
type Log struct {
	Level  string `yaml:"level" default:"info" one:"debug info warn error" doc:"Least severity that is logged."`
	Format string `yaml:"format" default:"text" one:"text json" doc:"Form of a line."`
}

// Agent is the configuration of `bailment agent`.
type Agent struct {
	Bootstrap string `yaml:"bootstrap" doc:"Bootstrap string, bailment1:HOST:PORT/ENV#GENESIS. Empty: $BAILMENT_BOOTSTRAP."`
	Data      string `yaml:"data" default:"/var/lib/bailment-agent" doc:"Directory for the node's key and certificate. Readable by the agent's user only."`
	Socket    string `yaml:"socket" default:"/run/bailment/agent.sock" doc:"Unix socket that processes on this machine ask; its path has at most 107 bytes."`
	// WorkloadAPI is beside Socket unless it is said where, so that two agents of one machine don't get into each other's way.
	WorkloadAPI string      `yaml:"workload_api" doc:"Unix socket of the SPIFFE Workload API and Envoy's SDS, for SPIFFE_ENDPOINT_SOCKET (unix://PATH); its path has at most 107 bytes. Empty: spiffe.sock in the directory of socket. \"none\" turns it off."`
	Attest      Attestation `yaml:"attest" doc:"How this machine proves what it is."`
	Workloads   Workloads   `yaml:"workloads" doc:"What is found out about the processes that ask."`
	Kubelet     Kubelet     `yaml:"kubelet" doc:"The kubelet of this machine, which knows its pods. Without an address, no pod is asked for."`
	Log         Log         `yaml:"log" doc:"Structured log on standard error. It never holds values."`
}

// WorkloadSocket is where the Workload API is served; empty: nowhere.
func (a *Agent) WorkloadSocket() string {
	switch a.WorkloadAPI {
	case None:
		return ""
	case "":
		return filepath.Join(filepath.Dir(a.Socket), "spiffe.sock")
	}
	return a.WorkloadAPI
}

// Workloads says what is found out about processes.
type Workloads struct {
	Parents int `yaml:"parents" min:"0" max:"8" doc:"How many ancestors of a process are claimed (process.parents). 0: none."`
}

// Kubelet says where the kubelet is, and how it and the agent know each other.
type Kubelet struct {
	Address  string `yaml:"address" doc:"https://127.0.0.1:10250, or the read-only port by name, http://127.0.0.1:10255, which proves nothing about who answers. Empty: none."`
	Token    string `yaml:"token_file" doc:"File with the service-account token that may get nodes/proxy (or nodes/pods); for https. It is read anew for each question."`
	CA       string `yaml:"ca_file" doc:"File with the certificates (PEM) that the kubelet's serving certificate is from, or that certificate; for https."`
	NodeName string `yaml:"node_name" doc:"Name of this node: the kubelet's certificate is for it, and its pods are on it. Empty: the certificate is for the address."`
}

// Attestation is the method of an agent and what it needs.
type Attestation struct {
	Method string            `yaml:"method" default:"join-token" doc:"Name of the attestation method."`
	Files  map[string]string `yaml:"files" doc:"Files with what the method needs, by the need's name: for join-token, token; for x509, see its README."`
	Key    string            `yaml:"key" default:"software" one:"software tpm" doc:"Where the machine's session key is: software (made by the agent, kept in its data directory), or tpm (made in the TPM, which it can't leave: a copy of the disk is not a copy of the machine; needs the method tpm)."`
	Values map[string]string `yaml:"values" doc:"What the method needs that is no file, by the need's name: for tpm, device. None of them is secret."`
}

// Rate is a rate per second with a burst, written as "20/s 200": 20 a second on average, 200 at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

func (r Rate) String() string { return fmt.Sprintf("%g/s %d", r.PerSecond, r.Burst) }

// IsZero reports whether the rate was left out.
func (r Rate) IsZero() bool { return r == Rate{} }

func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && s%u.bytes == 0 {
			return fmt.Sprintf("%d%s", int64(s/u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%d", int64(s))
}

var sizeUnits = []struct {
	name  string
	bytes Size
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// None is what turns a listener off.
const None = "none"

// KeySoftware is where a session key is that the agent makes itself.
const KeySoftware = "software"
