package identity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

const bootstrapPrefix = "bailment1:"

// maxHost is the length of a DNS name in its text form (RFC 1035 §2.3.4).
const maxHost = 253

// Bootstrap is all that a machine needs to find its environment and to know that it found the right
// one. It holds no secret. Its text is "bailment1:HOST:PORT/ENV#GENESIS".
type Bootstrap struct {
	Host    string   // a DNS name in lower case, or an IP address without brackets
	Port    uint16   // never 0
	Env     string   // the environment's name
	Genesis [32]byte // SHA-256 of the environment's genesis; never all zero
}

// ParseBootstrap reads a bootstrap string, in exactly the form that String prints.
func ParseBootstrap(s string) (Bootstrap, error) {
	fail := func(format string, args ...any) (Bootstrap, error) {
		return Bootstrap{}, fmt.Errorf("bootstrap string: "+format, args...)
	}
	if len(s) > len(bootstrapPrefix)+maxHost+len(":65535/")+MaxEnv+len("#")+64 {
		return fail("too long")
	}
	rest, ok := strings.CutPrefix(s, bootstrapPrefix)
	if !ok {
		if strings.HasPrefix(s, "bailment") {
			return fail("its version is not known to this binary (it must begin with %s)", bootstrapPrefix)
		}
		return fail("it must begin with %s", bootstrapPrefix)
	}
	addr, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return fail("no '/' before the environment's name")
	}
	env, genesis, ok := strings.Cut(rest, "#")
	if !ok {
		return fail("no '#' before the genesis digest (quote the string in a shell)")
	}
	var b Bootstrap
	var err error
	if b.Host, b.Port, err = splitAddr(addr); err != nil {
		return fail("%w", err)
	}
	b.Env = env
	if len(genesis) != 64 || strings.ToLower(genesis) != genesis {
		return fail("the genesis digest is not 64 lower-case hexadecimal digits")
	}
	if _, err := hex.Decode(b.Genesis[:], []byte(genesis)); err != nil {
		return fail("the genesis digest is not 64 lower-case hexadecimal digits")
	}
	if err := b.Validate(); err != nil {
		return fail("%w", err)
	}
	return b, nil
}

func splitAddr(addr string) (host string, port uint16, err error) {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 {
		return "", 0, fmt.Errorf("address %q has no port", addr)
	}
	host = addr[:i]
	if strings.HasPrefix(host, "[") {
		inner, ok := strings.CutSuffix(host[1:], "]")
		if !ok || !strings.Contains(inner, ":") {
			return "", 0, fmt.Errorf("address %q: brackets must enclose an IPv6 address", addr)
		}
		host = inner
	} else if strings.Contains(host, ":") {
		return "", 0, fmt.Errorf("address %q: an IPv6 address needs brackets", addr)
	}
	text := addr[i+1:]
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != text {
		return "", 0, fmt.Errorf("address %q: the port is not a number from 1 to 65535", addr)
	}
	return host, uint16(n), nil
}

// Validate says what is wrong with a Bootstrap that was put together by hand, or nil.
func (b Bootstrap) Validate() error {
	if err := validHost(b.Host); err != nil {
		return err
	}
	if b.Port == 0 {
		return errors.New("the port is 0")
	}
	if b.Genesis == ([32]byte{}) {
		return errors.New("the genesis digest is all zero")
	}
	return ValidEnv(b.Env)
}

func validHost(host string) error {
	if host == "" || len(host) > maxHost {
		return fmt.Errorf("host %q is empty or longer than %d bytes", host, maxHost)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" || ip.String() != host {
			return fmt.Errorf("host %q is not in the usual form, without zone: %s", host, ip.WithZone(""))
		}
		return nil
	}
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("host %q is not a DNS name", host)
		}
		for i := range len(label) {
			// '_' is not RFC 1123, but container networks name hosts with it.
			if c := label[i]; !isLower(c) && !isDigit(c) && c != '-' && c != '_' {
				return fmt.Errorf("host %q is not a DNS name in lower case", host)
			}
		}
		last = label
	}
	// "10.1" and "127.000.0.1" are addresses to some resolvers and names to others.
	if strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("host %q is neither a DNS name nor an IP address", host)
	}
	return nil
}

// Addr is HOST:PORT for dialling, with brackets round an IPv6 address.
func (b Bootstrap) Addr() string {
	port := strconv.FormatUint(uint64(b.Port), 10)
	if strings.Contains(b.Host, ":") {
		return "[" + b.Host + "]:" + port
	}
	return b.Host + ":" + port
}

// String is the bootstrap string.
func (b Bootstrap) String() string {
	return bootstrapPrefix + b.Addr() + "/" + b.Env + "#" + hex.EncodeToString(b.Genesis[:])
}

// MarshalText prints the bootstrap string.
func (b Bootstrap) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText is ParseBootstrap.
func (b *Bootstrap) UnmarshalText(text []byte) error {
	parsed, err := ParseBootstrap(string(text))
	if err != nil {
		return err
	}
	*b = parsed
	return nil
}
