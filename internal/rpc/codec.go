package rpc

import (
	"regexp"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/bailment/bailment/internal/problem"
)

// codec is protobuf, binary or as JSON, read strictly: a field that this version doesn't know may be
// the one that narrows the request, so ignoring it would do something else than was asked.
//
// What can't be read is noted in bad and reported by the interceptor, as a problem like any other.
// Connect's own report would quote the parser, and the parser quotes the message, which may be a
// secret value.
type codec struct {
	name string
	json bool
	bad  *malformed
}

func (c *codec) Name() string { return c.name }

func (c *codec) Marshal(m any) ([]byte, error) { return c.MarshalAppend(nil, m) }

// MarshalAppend lets connect reuse its buffers.
func (c *codec) MarshalAppend(dst []byte, m any) ([]byte, error) {
	msg, ok := m.(proto.Message)
	if !ok {
		return nil, problem.New(problem.ReasonInternal, "%T is not a message", m)
	}
	return encode(dst, msg, c.json)
}

func encode(dst []byte, m proto.Message, asJSON bool) ([]byte, error) {
	if asJSON {
		return protojson.MarshalOptions{}.MarshalAppend(dst, m)
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}

func (c *codec) Unmarshal(data []byte, m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return problem.New(problem.ReasonInternal, "%T is not a message", m)
	}
	if p := decode(data, msg, c.json); p != nil {
		c.bad.note(m, p)
	}
	return nil
}

// decode reads a message strictly, and tells nothing of what it could not read but where it stands.
func decode(data []byte, m proto.Message, asJSON bool) *problem.Problem {
	if asJSON {
		if len(data) == 0 {
			data = []byte("{}")
		}
		if err := (protojson.UnmarshalOptions{}).Unmarshal(data, m); err != nil {
			return problem.New(problem.ReasonInvalid, "the body is not the JSON form of %s%s", m.ProtoReflect().Descriptor().Name(), where.FindString(err.Error()))
		}
		return nil
	}
	switch err := proto.Unmarshal(data, m); {
	case err != nil:
		return problem.New(problem.ReasonInvalid, "the body is not the binary form of %s", m.ProtoReflect().Descriptor().Name())
	case len(m.ProtoReflect().GetUnknown()) > 0:
		return problem.New(problem.ReasonUnsupported, "the request has fields of %s that this server does not know", m.ProtoReflect().Descriptor().Name()).
			WithFix("upgrade the server first, then the clients")
	}
	return nil
}

// where is the place in a JSON text as protojson reports it. Nothing else of its report is passed on.
var where = regexp.MustCompile(` \(line \d+:\d+\)`)

// malformed notes which messages could not be read, between the codec and the interceptor.
type malformed struct {
	count atomic.Int64
	m     sync.Map // message -> *problem.Problem
}

func (b *malformed) note(m any, p *problem.Problem) {
	b.m.Store(m, p)
	b.count.Add(1)
}

// take returns and forgets what was noted about a message. It costs one atomic read when all is well.
func (b *malformed) take(m any) error {
	if b.count.Load() == 0 {
		return nil
	}
	p, ok := b.m.LoadAndDelete(m)
	if !ok {
		return nil
	}
	b.count.Add(-1)
	return p.(*problem.Problem)
}

// strictConn reports what the codec noted about a stream's message.
type strictConn struct {
	connect.StreamingHandlerConn
	bad *malformed
}

func (s *strictConn) Receive(m any) error {
	if err := s.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	return s.bad.take(m)
}
