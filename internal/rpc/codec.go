package rpc

import (
	"regexp"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/problem"
)

// The encodings, as connect calls them.
const (
	codecProto       = "proto"
	codecJSON        = "json"
	codecJSONCharset = "json; charset=utf-8"
)

var codecNames = [...]string{codecProto, codecJSON, codecJSONCharset}

// codec is protobuf, binary or as JSON, read strictly: a field that this version doesn't know may be
// the one that narrows the request, so ignoring it would do something else than was asked.
//
// What can't be read becomes a message that is empty but for a note of the problem, which the interceptor
// reports like any other. Connect's own report would quote the parser, and the parser quotes the message,
// which may be a secret value. The note is in the message and nowhere else, so it lives as long as the request.
type codec struct {
	name string
	json bool
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
		return note(msg, p)
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
	case hasUnknown(m.ProtoReflect()):
		return problem.New(problem.ReasonUnsupported, "the request has fields of %s that this server does not know", m.ProtoReflect().Descriptor().Name()).
			WithFix("upgrade the server first, then the clients")
	}
	return nil
}

// hasUnknown reports whether a message, or one inside of it, has fields that are not known.
func hasUnknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		// Most requests have no messages inside, and this costs them nothing more.
		if f.Message() == nil || !m.Has(f) {
			continue
		}
		v, found := m.Get(f), false
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
					found = hasUnknown(x.Message())
					return !found
				})
			}
		case f.IsList():
			for j := 0; j < v.List().Len() && !found; j++ {
				found = hasUnknown(v.List().Get(j).Message())
			}
		default:
			found = hasUnknown(v.Message())
		}
		if found {
			return true
		}
	}
	return false
}

// where is the place in a JSON text as protojson reports it. Nothing else of its report is passed on.
var where = regexp.MustCompile(` \(line \d+:\d+\)`)

// noteField is the number of the unknown field that a note is. No sender can write one: a message with a field that is not
// known is one that can't be read, and what is noted of it replaces all that it had.
const noteField protowire.Number = 1<<29 - 1

// note empties a message and leaves in it why it could not be read.
func note(m proto.Message, p *problem.Problem) error {
	proto.Reset(m)
	b, err := proto.Marshal(&pb.Problem{Reason: string(p.Reason), Message: p.Message, Fix: p.Fix})
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "noting what can't be read")
	}
	m.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, noteField, protowire.BytesType), b))
	return nil
}

// noted is what the codec noted in a message, or nil if it could be read.
func noted(m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return problem.New(problem.ReasonInternal, "%T is not a message", m)
	}
	unknown := msg.ProtoReflect().GetUnknown()
	if len(unknown) == 0 {
		return nil
	}
	var p pb.Problem
	_, _, n := protowire.ConsumeTag(unknown)
	b, _ := protowire.ConsumeBytes(unknown[max(n, 0):])
	if err := proto.Unmarshal(b, &p); err != nil || p.Reason == "" {
		return problem.New(problem.ReasonInternal, "a message came with fields that are no note")
	}
	out := problem.New(problem.Reason(p.Reason), "%s", p.Message)
	out.Fix = p.Fix
	return out
}

// strictConn reports what the codec noted in a stream's message.
type strictConn struct {
	connect.StreamingHandlerConn
}

func (s *strictConn) Receive(m any) error {
	if err := s.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	return noted(m)
}
