package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// minimalServer is the yardstick: net/http over TLS 1.3 that answers 1 KiB. It runs as a process of its own, so that
// its CPU time can be read.
func minimalServer(addr, certFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"minimal"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		return err
	}
	if err := os.WriteFile(certFile, b.Bytes(), 0o600); err != nil {
		return err
	}
	body := bytes.Repeat([]byte("x"), 1024)
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(body)
		}),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}
	return s.ServeTLS(l, "", "")
}

// startMinimal runs this program again as the minimal server.
func startMinimal(dir string) (*exec.Cmd, func() []*worker, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, nil, err
	}
	certFile := dir + "/minimal.pem"
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(self, "-minimal", addr, "-minimal-cert", certFile)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if b, err := os.ReadFile(certFile); err == nil && pool.AppendCertsFromPEM(b) {
			break
		}
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("the minimal server does not start")
		}
		<-time.After(5 * time.Millisecond)
	}
	req := []byte("GET /1k HTTP/1.1\r\nHost: minimal\r\n\r\n")
	return cmd, func() []*worker {
		out := make([]*worker, 64)
		for i := range out {
			out[i] = &worker{addr: addr, tls: &tls.Config{RootCAs: pool, ServerName: "minimal", MinVersion: tls.VersionTLS13}, next: func() []byte { return req }}
		}
		return out
	}, nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
