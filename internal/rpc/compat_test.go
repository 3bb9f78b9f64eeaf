package rpc_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	pb "github.com/bailment/bailment/api/bailment/v1"
)

var update = flag.Bool("update", false, "add what is new on the wire to testdata/wire.txt")

const wireFile = "testdata/wire.txt"

// The wire only grows: what testdata/wire.txt has must be there, with its number, type and name (JSON
// clients depend on names). The file can be added to with -update; nothing is ever taken out of it.
func TestWireIsCompatible(t *testing.T) {
	b, err := os.ReadFile(wireFile)
	if err != nil && !*update {
		t.Fatal(err)
	}
	kept := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(b) == 0 {
		kept = nil
	}
	now := slices.Concat(wire(pb.File_bailment_v1_bailment_proto), wire(pb.File_bailment_v1_spiffe_proto), wire(pb.File_bailment_v1_recovery_proto))
	for _, broken := range missing(kept, now) {
		t.Errorf("no longer on the wire: %s", broken)
	}
	added := missing(now, kept)
	if *update && !t.Failed() {
		all := append(kept, added...)
		slices.Sort(all)
		if err := os.WriteFile(wireFile, []byte(strings.Join(all, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, line := range added {
		t.Errorf("new on the wire: %s (if it is meant: go test ./internal/rpc -run Wire -update)", line)
	}
}

func missing(want, have []string) []string {
	set := make(map[string]bool, len(have))
	for _, line := range have {
		set[line] = true
	}
	var out []string
	for _, line := range want {
		if !set[line] {
			out = append(out, line)
		}
	}
	return out
}

// wire lists what clients depend on, a line each.
func wire(f protoreflect.FileDescriptor) []string {
	var out []string
	var message func(m protoreflect.MessageDescriptor)
	enum := func(e protoreflect.EnumDescriptor) {
		for i := range e.Values().Len() {
			v := e.Values().Get(i)
			out = append(out, fmt.Sprintf("value %s = %d %s", e.FullName(), v.Number(), v.Name()))
		}
	}
	message = func(m protoreflect.MessageDescriptor) {
		out = append(out, "message "+string(m.FullName()))
		for i := range m.Fields().Len() {
			x := m.Fields().Get(i)
			kind := x.Kind().String()
			switch {
			case x.Message() != nil:
				kind = string(x.Message().FullName())
			case x.Enum() != nil:
				kind = string(x.Enum().FullName())
			}
			out = append(out, fmt.Sprintf("field %s = %d %s %s json %s", x.FullName(), x.Number(), x.Cardinality(), kind, x.JSONName()))
		}
		for i := range m.Messages().Len() {
			message(m.Messages().Get(i))
		}
		for i := range m.Enums().Len() {
			enum(m.Enums().Get(i))
		}
	}
	for i := range f.Messages().Len() {
		message(f.Messages().Get(i))
	}
	for i := range f.Enums().Len() {
		enum(f.Enums().Get(i))
	}
	for i := range f.Services().Len() {
		s := f.Services().Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			stream := ""
			if m.IsStreamingServer() {
				stream = "stream "
			}
			out = append(out, fmt.Sprintf("method %s(%s) %s%s", m.FullName(), m.Input().FullName(), stream, m.Output().FullName()))
		}
	}
	slices.Sort(out)
	return out
}

// The guard is worth what it catches: each kind of break, planted.
func TestWireGuardCatches(t *testing.T) {
	whole := wire(pb.File_bailment_v1_bailment_proto)
	find := func(f *descriptorpb.FileDescriptorProto, name string) *descriptorpb.DescriptorProto {
		for _, m := range f.MessageType {
			if m.GetName() == name {
				return m
			}
		}
		t.Fatal("no message " + name)
		return nil
	}
	for name, plant := range map[string]func(*descriptorpb.FileDescriptorProto){
		"a removed field":    func(f *descriptorpb.FileDescriptorProto) { m := find(f, "PutRequest"); m.Field = m.Field[1:] },
		"a renumbered field": func(f *descriptorpb.FileDescriptorProto) { find(f, "PutRequest").Field[0].Number = proto.Int32(99) },
		"a renamed field": func(f *descriptorpb.FileDescriptorProto) {
			x := find(f, "PutRequest").Field[0]
			x.Name, x.JsonName = proto.String("other"), proto.String("other")
		},
		"another type": func(f *descriptorpb.FileDescriptorProto) {
			find(f, "PutRequest").Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum()
		},
		"repeated": func(f *descriptorpb.FileDescriptorProto) {
			find(f, "PutRequest").Field[0].Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		},
		"a removed method": func(f *descriptorpb.FileDescriptorProto) { f.Service[0].Method = nil },
		"a stream made unary": func(f *descriptorpb.FileDescriptorProto) {
			for _, s := range f.Service {
				for _, m := range s.Method {
					m.ServerStreaming = nil
				}
			}
		},
		"a renumbered enum value": func(f *descriptorpb.FileDescriptorProto) {
			find(f, "RevokeRequest").EnumType[0].Value[2].Number = proto.Int32(7)
		},
	} {
		f := protodesc.ToFileDescriptorProto(pb.File_bailment_v1_bailment_proto)
		plant(f)
		d, err := protodesc.NewFile(f, protoregistry.GlobalFiles)
		if err != nil {
			t.Fatal(name, err)
		}
		if len(missing(whole, wire(d))) == 0 {
			t.Errorf("%s was not caught", name)
		}
	}
}
