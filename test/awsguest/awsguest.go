// Package awsguest puts machines behind the instances of test/awsfake: guests of
// this process (test/fake) that boot from the bytes of their AMI and are told their
// keys by their user data, and whose disks are what snapshots of their volumes hold.
package awsguest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	ebstypes "github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/fake"
	"gopkg.in/yaml.v3"
)

// Guests are the machines of a cloud.
type Guests struct {
	Machines *fake.Builder
	Port     int // where their sshd listens, at the instance's address
	// Web has an instance that nobody can log in to serve the /www of its disk, with
	// the header X-Image-Id.
	Web bool

	t     testing.TB
	cloud *awsfake.Cloud
	ec2   *ec2.Client
	ebs   *ebs.Client

	mu    sync.Mutex
	lives map[string]*fake.Seeded // by instance
	roots map[string]string       // instance, by volume
}

// In gives machines to the instances of a cloud, which cfg is a client's of.
func In(t testing.TB, cloud *awsfake.Cloud, cfg aws.Config) *Guests {
	t.Helper()
	dir := t.TempDir()
	g := &Guests{Machines: &fake.Builder{Dir: filepath.Join(dir, "guests"), Cache: filepath.Join(dir, "cache")}, t: t, cloud: cloud,
		ec2: ec2.NewFromConfig(cfg), ebs: ebs.NewFromConfig(cfg), lives: map[string]*fake.Seeded{}, roots: map[string]string{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	g.ok(err)
	g.Port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	cloud.Set(func() { cloud.Backend, cloud.VolumeContent = g.boot, g.content })
	return g
}

func (g *Guests) ok(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// Image is an AMI of somebody's: the disk of a builder's base.
func (g *Guests) Image(name string, of *fake.Builder) string {
	g.t.Helper()
	path := filepath.Join(g.t.TempDir(), name)
	g.ok(of.PackBase(path))
	data, err := os.ReadFile(path)
	g.ok(err)
	ctx := g.t.Context()
	start, err := g.ebs.StartSnapshot(ctx, &ebs.StartSnapshotInput{VolumeSize: aws.Int64(1)})
	g.ok(err)
	n := int32(0)
	for ; len(data) > 0; n++ {
		block := make([]byte, ami.BlockSize)
		data = data[copy(block, data):]
		sum := sha256.Sum256(block)
		_, err := g.ebs.PutSnapshotBlock(ctx, &ebs.PutSnapshotBlockInput{SnapshotId: start.SnapshotId, BlockIndex: aws.Int32(n), BlockData: bytes.NewReader(block), DataLength: aws.Int32(ami.BlockSize),
			Checksum: aws.String(base64.StdEncoding.EncodeToString(sum[:])), ChecksumAlgorithm: ebstypes.ChecksumAlgorithmChecksumAlgorithmSha256})
		g.ok(err)
	}
	_, err = g.ebs.CompleteSnapshot(ctx, &ebs.CompleteSnapshotInput{SnapshotId: start.SnapshotId, ChangedBlocksCount: &n})
	g.ok(err)
	g.until("the snapshot", func() bool {
		out, err := g.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{SnapshotIds: []string{*start.SnapshotId}})
		return err == nil && out.Snapshots[0].State == types.SnapshotStateCompleted
	})
	made, err := g.ec2.RegisterImage(ctx, &ec2.RegisterImageInput{Name: &name, Architecture: types.ArchitectureValuesX8664, RootDeviceName: aws.String("/dev/xvda"), VirtualizationType: aws.String("hvm"),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsBlockDevice{SnapshotId: start.SnapshotId}}}})
	g.ok(err)
	g.until("the AMI", func() bool {
		out, err := g.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{*made.ImageId}})
		return err == nil && len(out.Images) == 1 && out.Images[0].State == types.ImageStateAvailable
	})
	return *made.ImageId
}

func (g *Guests) until(what string, so func() bool) {
	g.t.Helper()
	for end := time.Now().Add(10 * time.Second); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("%s does not become ready", what)
		}
	}
}

// Live tells whether an instance has a machine.
func (g *Guests) Live(instance string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lives[instance] != nil
}

// boot boots the guest of an instance.
func (g *Guests) boot(i awsfake.Instance) (addr string, stop func(), err error) {
	disk, err := g.disk(i.Image)
	if err != nil {
		return "", nil, err
	}
	host, authorized, err := Told(i.UserData)
	if (err != nil || len(host) == 0) && !g.Web { // somebody else's
		return "", nil, err
	}
	at := fmt.Sprintf("%s:%d", i.IP, g.Port)
	if len(host) == 0 {
		at = net.JoinHostPort(i.IP, "0")
	}
	s, err := g.Machines.Start(i.ID, disk, fake.Seed{HostKey: host, Authorized: authorized, Addr: at})
	if err != nil {
		return "", nil, err
	}
	if len(host) == 0 {
		return g.serve(i, s)
	}
	volumes, err := g.ec2.DescribeVolumes(context.Background(), &ec2.DescribeVolumesInput{Filters: []types.Filter{{Name: aws.String("attachment.instance-id"), Values: []string{i.ID}}}})
	if err != nil {
		return "", nil, err
	}
	g.mu.Lock()
	g.lives[i.ID] = s
	for _, v := range volumes.Volumes {
		g.roots[*v.VolumeId] = i.ID
	}
	g.mu.Unlock()
	var mu sync.Mutex
	pressed := false
	go func() {
		<-s.Done()
		mu.Lock()
		defer mu.Unlock()
		if !pressed && s.Clean() {
			g.cloud.PowerOff(i.Region, i.ID)
		}
	}()
	return "", func() {
		mu.Lock()
		pressed = true
		mu.Unlock()
		s.Press()
	}, nil
}

// serve has a guest serve what is in its /www.
func (g *Guests) serve(i awsfake.Instance, s *fake.Seeded) (string, func(), error) {
	l, err := net.Listen("tcp", net.JoinHostPort(i.IP, "0"))
	if err != nil {
		s.Kill()
		return "", nil, err
	}
	files := http.FileServer(http.Dir(filepath.Join(g.Machines.Dir, i.ID, "root", "www")))
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Image-Id", i.Image)
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		r.Method = http.MethodGet // a POST, which nothing may send twice, is answered so too
		files.ServeHTTP(rw, r)
	})}
	go func() { _ = srv.Serve(l) }()
	return l.Addr().String(), func() {
		_ = srv.Close()
		s.Kill()
	}, nil
}

// disk are the bytes of an AMI's snapshot.
func (g *Guests) disk(image string) (io.Reader, error) {
	ctx := context.Background()
	out, err := g.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{image}})
	if err != nil || len(out.Images) != 1 {
		return nil, errors.Join(fmt.Errorf("no image %s", image), err)
	}
	snapshot := out.Images[0].BlockDeviceMappings[0].Ebs.SnapshotId
	list, err := g.ebs.ListSnapshotBlocks(ctx, &ebs.ListSnapshotBlocksInput{SnapshotId: snapshot})
	if err != nil {
		return nil, err
	}
	var all bytes.Buffer
	for _, b := range list.Blocks {
		got, err := g.ebs.GetSnapshotBlock(ctx, &ebs.GetSnapshotBlockInput{SnapshotId: snapshot, BlockIndex: b.BlockIndex, BlockToken: b.BlockToken})
		if err != nil {
			return nil, err
		}
		all.Write(make([]byte, int(*b.BlockIndex)*ami.BlockSize-all.Len()))
		if _, err := io.Copy(&all, got.BlockData); err != nil {
			return nil, err
		}
	}
	return &all, nil
}

// content are the bytes of a volume: those of its guest's disk.
func (g *Guests) content(volume string, _ awsfake.Instance) (io.ReaderAt, int64) {
	g.mu.Lock()
	id := g.roots[volume]
	s := g.lives[id]
	g.mu.Unlock()
	if s == nil {
		return nil, 0
	}
	path := filepath.Join(g.Machines.Dir, id+".disk")
	if err := s.Pack(path); err != nil {
		g.t.Error(err)
		return nil, 0
	}
	data, err := os.ReadFile(path)
	if err != nil {
		g.t.Error(err)
	}
	return bytes.NewReader(data), int64(len(data))
}

// Told reads what a guest's cloud-init would: the last cloud-config there is.
func Told(userData string) (host []byte, authorized []string, err error) {
	at := strings.LastIndex(userData, "#cloud-config\n")
	if at < 0 {
		return nil, nil, errors.New("no cloud-config")
	}
	text := userData[at:]
	if m := regexp.MustCompile(`\r\n--[0-9a-f]+--`).FindStringIndex(text); m != nil {
		text = text[:m[0]]
	}
	var c struct {
		Keys struct {
			Private string `yaml:"ed25519_private"`
		} `yaml:"ssh_keys"`
		Users []struct {
			Authorized []string `yaml:"ssh_authorized_keys"`
		} `yaml:"users"`
	}
	if err := yaml.Unmarshal([]byte(text), &c); err != nil || len(c.Users) != 1 {
		return nil, nil, errors.Join(errors.New("not rebake's"), err)
	}
	return []byte(c.Keys.Private), c.Users[0].Authorized, nil
}
