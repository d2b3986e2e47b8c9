// Kubernetes' API server with the store that it needs, in one program, for tests on one machine.
//
//	apiserver DIRECTORY STORE_PORT PEER_PORT [FLAG...]
//
// The server is kube-apiserver and the store etcd, both as their authors publish them. Data, certificates and the key of
// service accounts lie in DIRECTORY. FLAG is what kube-apiserver takes. Everybody on the machine can ask the store.
//
// There is nothing else of Kubernetes here: no scheduler, no controllers, no kubelet.
package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	if len(os.Args) < 4 {
		fail(errors.New("usage: apiserver DIRECTORY STORE_PORT PEER_PORT [FLAG...]"))
	}
	directory := os.Args[1]
	key := filepath.Join(directory, "service-account.key")
	if err := makeKey(key); err != nil {
		fail(err)
	}
	store := "http://127.0.0.1:" + os.Args[2]
	if err := startStore(filepath.Join(directory, "store"), store, "http://127.0.0.1:"+os.Args[3]); err != nil {
		fail(fmt.Errorf("no store: %w", err))
	}
	command := app.NewAPIServerCommand()
	command.SetArgs(append([]string{
		"--etcd-servers=" + store,
		"--cert-dir=" + directory,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + key,
		"--service-account-signing-key-file=" + key,
	}, os.Args[4:]...))
	os.Exit(cli.Run(command))
}

// makeKey makes the key of service accounts, unless there is one.
func makeKey(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return os.WriteFile(path, pem.EncodeToMemory(block), 0o600)
}

// startStore runs etcd in this process, with its data in directory; client and peer are its addresses.
func startStore(directory, client, peer string) error {
	clients, err := url.Parse(client)
	if err != nil {
		return err
	}
	peers, err := url.Parse(peer)
	if err != nil {
		return err
	}
	config := embed.NewConfig()
	config.Dir = directory
	config.LogLevel = "error"
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clients}, []url.URL{*clients}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peers}, []url.URL{*peers}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// Nobody needs what is in it after the machine has crashed.
	config.UnsafeNoFsync = true
	store, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	select {
	case <-store.Server.ReadyNotify():
		return nil
	case err := <-store.Err():
		return err
	case <-time.After(time.Minute):
		return errors.New("it was not ready within a minute")
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "apiserver:", err)
	os.Exit(1)
}
