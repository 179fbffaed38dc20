//go:build e2e

package amazon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/rebake/rebake/artifact/ami"
	"github.com/rebake/rebake/builder"
	"github.com/rebake/rebake/internal/qemu"
	"github.com/rebake/rebake/internal/state"
	"github.com/rebake/rebake/test/awsguest"
	"github.com/rebake/rebake/test/conformance"
	"github.com/rebake/rebake/test/fake"
	"github.com/rebake/rebake/test/moto"
	"github.com/rebake/rebake/test/tinyguest"
)

const guestPort = 2222

// guest is what runs behind an instance.
type guest interface {
	Done() <-chan struct{}
	Press(ctx context.Context) error // its power button
	Kill()
	Clean() error           // why its disk must not be taken
	Disk(path string) error // writes it as a raw file
}

// hall stands before moto's server, which has no machine behind an instance and
// no bytes behind a volume: it boots a guest for each instance that is launched,
// with the instance's user data and at its address (the VPC is in 127/8), and
// answers for the blocks of snapshots of their disks.
type hall struct {
	t    *testing.T
	dir  string
	base string // disk of the source AMI
	pass *httputil.ReverseProxy
	to   string
	open func(id, disk, addr, userData string) (guest, error)

	ending sync.Mutex
	ended  map[string]bool // by instance, under ending

	mu        sync.Mutex
	guests    map[string]*hosted // by instance
	snapshots map[string]string  // raw disks
	images    map[string]string  // snapshots
	calls     map[string]int
}

type hosted struct {
	guest
	ready  chan struct{}
	told   bool // to end, by a call
	itself bool // it powered off
}

func newHall(t *testing.T, to, base string) (*hall, string) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	h := &hall{t: t, to: to, dir: t.TempDir(), base: base, pass: httputil.NewSingleHostReverseProxy(u), ended: map[string]bool{}, guests: map[string]*hosted{}, snapshots: map[string]string{}, images: map[string]string{}, calls: map[string]int{}}
	srv := httptest.NewServer(h)
	t.Cleanup(func() {
		srv.Close()
		for id := range h.guests {
			h.press(id, false)
		}
	})
	return h, srv.URL
}

func (h *hall) count(action string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[action]
}

var blocks = regexp.MustCompile(`^/snapshots/(snap-[0-9a-f]+)/blocks(?:/(\d+))?$`)

func (h *hall) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if m := blocks.FindStringSubmatch(r.URL.Path); m != nil {
		h.mu.Lock()
		disk := h.snapshots[m[1]]
		h.mu.Unlock()
		if disk != "" {
			h.serveBlocks(rw, disk, m[2])
			return
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, err := url.ParseQuery(string(body))
	if err != nil {
		form = url.Values{}
	}
	action := form.Get("Action")
	h.mu.Lock()
	h.calls[action]++
	h.mu.Unlock()
	if id := form.Get("InstanceId.1"); action == "StopInstances" || action == "TerminateInstances" {
		h.press(id, action == "StopInstances")
		h.ending.Lock() // moto stops an instance that is terminated, and then cannot end it
		defer h.ending.Unlock()
		if action == "StopInstances" && h.ended[id] {
			rw.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(rw, "<Response><Errors><Error><Code>IncorrectInstanceState</Code><Message>it is terminated</Message></Error></Errors><RequestID>1</RequestID></Response>")
			return
		}
		h.ended[id] = h.ended[id] || action == "TerminateInstances"
	}
	rec := httptest.NewRecorder()
	h.pass.ServeHTTP(rec, r)
	if rec.Code == http.StatusOK {
		h.heard(action, form, rec.Body.Bytes())
	}
	for k, v := range rec.Header() {
		rw.Header()[k] = v
	}
	answer := rec.Body.Bytes()
	if action == "DescribeImages" && !bytes.Contains(answer, []byte("<architecture>x86_64")) { // moto does not say it of a registered image
		answer = regexp.MustCompile(`</imageId>`).ReplaceAll(answer, []byte("</imageId><architecture>x86_64</architecture>"))
	}
	if action == "DescribeInstances" {
		answer = h.reasons(answer)
	}
	rw.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	rw.WriteHeader(rec.Code)
	_, _ = rw.Write(answer)
}

// heard acts on what was done.
func (h *hall) heard(action string, form url.Values, answer []byte) {
	text := func(tag string) string {
		m := regexp.MustCompile(`<` + tag + `>([^<]*)</` + tag + `>`).FindSubmatch(answer)
		if m == nil {
			return ""
		}
		return string(m[1])
	}
	switch action {
	case "RunInstances":
		if data, err := base64.StdEncoding.DecodeString(form.Get("UserData")); err == nil && len(data) > 0 {
			h.boot(text("instanceId"), form.Get("ImageId"), text("privateIpAddress"), string(data))
		}
	case "RegisterImage":
		h.mu.Lock()
		h.images[text("imageId")] = form.Get("BlockDeviceMapping.1.Ebs.SnapshotId")
		h.mu.Unlock()
	case "CreateSnapshot":
		var got struct {
			Volume string `xml:"volumeId"`
			ID     string `xml:"snapshotId"`
		}
		if err := xml.Unmarshal(answer, &got); err != nil {
			h.t.Error(err)
		}
		h.shoot(got.Volume, got.ID)
	}
}

// boot starts an instance's guest.
func (h *hall) boot(id, image, ip, userData string) {
	v := &hosted{ready: make(chan struct{})}
	h.mu.Lock()
	h.guests[id] = v
	disk := h.base
	if s := h.images[image]; s != "" {
		disk = h.snapshots[s]
	}
	h.mu.Unlock()
	go func() {
		defer close(v.ready)
		var err error
		if v.guest, err = h.open(id, disk, net.JoinHostPort(ip, strconv.Itoa(guestPort)), userData); err != nil {
			h.t.Errorf("guest of %s: %v", id, err)
			return
		}
		go func() {
			<-v.Done()
			h.mu.Lock()
			v.itself = !v.told && v.Clean() == nil
			itself := v.itself
			h.mu.Unlock()
			if itself {
				h.stop(id)
			}
		}()
	}()
}

// stop has moto know that an instance's guest powered off.
func (h *hall) stop(id string) {
	h.ending.Lock()
	defer h.ending.Unlock()
	if h.ended[id] {
		return
	}
	req, err := http.NewRequest(http.MethodPost, h.to+"/", strings.NewReader(url.Values{"Action": {"StopInstances"}, "Version": {"2016-11-15"}, "InstanceId.1": {id}}.Encode()))
	if err != nil {
		h.t.Error(err)
		return
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/"+here+"/ec2/aws4_request, SignedHeaders=host, Signature=0")
	res, err := http.DefaultClient.Do(req)
	if err != nil || res.StatusCode != http.StatusOK {
		h.t.Errorf("stop %s: %v, %v", id, res, err)
		return
	}
	res.Body.Close()
}

// reasons tells of instances that powered off by themselves what EC2 would.
func (h *hall) reasons(answer []byte) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	parts := bytes.Split(answer, []byte("<reservationId>")) // each of one instance
	for i, p := range parts {
		m := regexp.MustCompile(`<instanceId>([^<]*)<`).FindSubmatch(p)
		if m == nil {
			continue
		}
		if v := h.guests[string(m[1])]; v != nil && v.itself {
			parts[i] = bytes.ReplaceAll(p, []byte("Client.UserInitiatedShutdown"), []byte("Client.InstanceInitiatedShutdown"))
		}
	}
	return bytes.Join(parts, []byte("<reservationId>"))
}

// press ends a guest: by its power button, or by force.
func (h *hall) press(id string, gently bool) {
	h.mu.Lock()
	v := h.guests[id]
	h.mu.Unlock()
	if v == nil {
		return
	}
	<-v.ready
	h.mu.Lock()
	v.told = true
	h.mu.Unlock()
	switch {
	case v.guest == nil:
	case !gently:
		v.Kill()
	default:
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := v.Press(ctx); err != nil {
			h.t.Logf("power button of %s: %v", id, err)
		}
		select {
		case <-v.Done():
		case <-ctx.Done():
			h.t.Errorf("%s does not power off", id)
		}
	}
}

// tiny is a guest under QEMU.
type tiny struct {
	*qemu.VM
	overlay string
	l       net.Listener
}

func (g tiny) Press(ctx context.Context) error { return g.PowerDown(ctx) }
func (g tiny) Kill() {
	g.l.Close()
	_ = g.VM.Kill(context.Background())
}
func (g tiny) Disk(path string) error {
	return qemu.Img(context.Background(), "convert", "-f", "qcow2", "-O", "raw", g.overlay, path)
}

func (h *hall) openTiny(id, disk, addr, userData string) (guest, error) {
	host, authorized, err := awsguest.Told(userData)
	if err != nil {
		return nil, err
	}
	ctx, dir := context.Background(), filepath.Join(h.dir, id)
	g := tiny{overlay: filepath.Join(h.dir, id+".qcow2")}
	if err := qemu.CreateOverlay(ctx, g.overlay, disk, "raw", 0); err != nil {
		return nil, err
	}
	g.VM, err = qemu.Start(ctx, qemu.Config{Name: "e2e-" + id, Dir: dir, RunDir: state.RunFor("e2eaws", dir), Disk: g.overlay, DiskFormat: "qcow2", Memory: 192 << 20, BindToOwner: true,
		Seed: qemu.Seed{Kind: "credentials", InstanceID: id, Hostname: id, AuthorizedKeys: authorized, HostKeyPEM: host}})
	if err != nil {
		return nil, err
	}
	if g.l, err = net.Listen("tcp", addr); err != nil {
		return nil, err
	}
	near := g.Ports()[22]
	go func() {
		for {
			c, err := g.l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				far, err := net.Dial("tcp", near)
				if err != nil {
					return
				}
				defer far.Close()
				go func() { _, _ = io.Copy(far, c); far.Close() }()
				_, _ = io.Copy(c, far)
			}()
		}
	}()
	return g, nil
}

// inside is a guest in this process.
type inside struct{ *fake.Seeded }

func (g inside) Press(context.Context) error { g.Seeded.Press(); return nil }
func (g inside) Disk(path string) error      { return g.Pack(path) }
func (g inside) Clean() error {
	if !g.Seeded.Clean() {
		return errors.New("it was killed")
	}
	return nil
}

func (h *hall) openInside(fb *fake.Builder) func(id, disk, addr, userData string) (guest, error) {
	return func(id, disk, addr, userData string) (guest, error) {
		host, authorized, err := awsguest.Told(userData)
		if err != nil {
			return nil, err
		}
		f, err := os.Open(disk)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		s, err := fb.Start(id, f, fake.Seed{HostKey: host, Authorized: authorized, Addr: addr})
		return inside{s}, err
	}
}

// shoot keeps the disk of a volume's guest under a snapshot's name.
func (h *hall) shoot(volume, snapshot string) {
	c, err := ami.Connect(context.Background(), here)
	if err != nil {
		h.t.Error(err)
		return
	}
	out, err := c.EC2.DescribeVolumes(context.Background(), &ec2.DescribeVolumesInput{VolumeIds: []string{volume}})
	if err != nil || len(out.Volumes) != 1 || len(out.Volumes[0].Attachments) != 1 {
		return // somebody's volume
	}
	h.mu.Lock()
	v := h.guests[*out.Volumes[0].Attachments[0].InstanceId]
	h.mu.Unlock()
	if v == nil {
		return
	}
	if err := v.Clean(); err != nil {
		h.t.Errorf("a snapshot is made of a guest that did not shut down by itself: %v", err)
	}
	raw := filepath.Join(h.dir, snapshot+".raw")
	if err := v.Disk(raw); err != nil {
		h.t.Error(err)
		return
	}
	h.mu.Lock()
	h.snapshots[snapshot] = raw
	h.mu.Unlock()
}

// serveBlocks is the part of the EBS direct APIs that reads.
func (h *hall) serveBlocks(rw http.ResponseWriter, disk, index string) {
	data, err := os.ReadFile(disk)
	if err != nil {
		h.t.Error(err)
	}
	block := func(i int) []byte {
		b := make([]byte, ami.BlockSize)
		copy(b, data[min(len(data), i*ami.BlockSize):])
		return b
	}
	if index != "" {
		i, err := strconv.Atoi(index)
		if err != nil {
			h.t.Error(err)
		}
		b := block(i)
		sum := sha256.Sum256(b)
		rw.Header().Set("x-amz-Checksum", base64.StdEncoding.EncodeToString(sum[:]))
		rw.Header().Set("x-amz-Checksum-Algorithm", "SHA256")
		rw.Header().Set("x-amz-Data-Length", strconv.Itoa(len(b)))
		_, _ = rw.Write(b)
		return
	}
	list := []map[string]any{}
	for i := 0; i*ami.BlockSize < len(data); i++ {
		if len(bytes.Trim(block(i), "\x00")) > 0 {
			list = append(list, map[string]any{"BlockIndex": i, "BlockToken": fmt.Sprint("token-", i)})
		}
	}
	_ = json.NewEncoder(rw).Encode(map[string]any{"BlockSize": ami.BlockSize, "VolumeSize": 1, "Blocks": list})
}

// site is moto with a VPC on loopback, a source AMI, and a program to run.
type site struct {
	*hall
	bin, home, dir, subnet, ami string
	ec2                         *ec2.Client
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := bare(t, moto.Start(t))
	s.program()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(root, ".cache", "e2e")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	if s.base, _, err = tinyguest.Build(t.Context(), filepath.Join(cache, "tinyguest")); err != nil {
		t.Fatal(err)
	}
	s.open = s.openTiny
	return s
}

// program builds rebake.
func (s *site) program() {
	s.t.Helper()
	s.bin = filepath.Join(s.t.TempDir(), "rebake")
	build := exec.Command("go", "build", "-o", s.bin, "./cmd/rebake")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

// insideGuests has the instances' guests in this process.
func (s *site) insideGuests() {
	s.t.Helper()
	fb := &fake.Builder{Dir: filepath.Join(s.dir, "guests"), Cache: filepath.Join(s.dir, "cache")}
	if err := os.MkdirAll(fb.Dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.base = filepath.Join(s.dir, "base")
	if err := fb.PackBase(s.base); err != nil {
		s.t.Fatal(err)
	}
	s.open = s.openInside(fb)
}

// bare is a site without guests or program.
func bare(t *testing.T, server string) *site {
	t.Helper()
	s := &site{home: t.TempDir(), dir: t.TempDir()}
	h, url := newHall(t, server, "")
	s.hall = h
	t.Setenv("AWS_ENDPOINT_URL", url)
	c, err := ami.Connect(t.Context(), here)
	if err != nil {
		t.Fatal(err)
	}
	s.ec2 = c.EC2
	vpc, err := s.ec2.CreateVpc(t.Context(), &ec2.CreateVpcInput{CidrBlock: aws.String("127.77.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	subnet, err := s.ec2.CreateSubnet(t.Context(), &ec2.CreateSubnetInput{VpcId: vpc.Vpc.VpcId, CidrBlock: aws.String("127.77.1.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	s.subnet = *subnet.Subnet.SubnetId
	s.ami = s.image("tiny")
	return s
}

func (s *site) image(name string) string {
	s.t.Helper()
	img, err := s.ec2.RegisterImage(s.t.Context(), &ec2.RegisterImageInput{Name: &name, Architecture: types.ArchitectureValuesX8664, RootDeviceName: aws.String("/dev/sda1"), VirtualizationType: aws.String("hvm"),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: aws.String("/dev/sda1"), Ebs: &types.EbsBlockDevice{VolumeSize: aws.Int32(1)}}}})
	if err != nil {
		s.t.Fatal(err)
	}
	return *img.ImageId
}

// The suite of every builder, against an AWS of another author.
func TestTheAmazonBuilderKeepsItsContractOnMoto(t *testing.T) {
	server := moto.Start(t)
	conformance.Builder(t, func(t *testing.T) conformance.BuilderWorld {
		s := bare(t, server)
		s.insideGuests()
		web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "it works") }))
		t.Cleanup(web.Close)
		_, port, err := net.SplitHostPort(web.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		other := s.image("other")
		open := func(t *testing.T, image string) builder.Builder {
			cfg := Config{Region: here, Source: Source{AMI: image}, Types: Types{AnyOf: []string{"t3.small"}}, SSH: SSH{User: "root", Port: guestPort},
				Network: Network{Subnet: Pick{ID: s.subnet}, Address: "private"}, Shutdown: 5 * time.Second}
			b, err := New(cfg, Deps{State: state.Dir(s.home), Store: &fake.Store{}, poll: 20 * time.Millisecond, settle: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		before := s.all()
		return conformance.BuilderWorld{
			Builder: open(t, s.ami), Port: n, Patience: 20 * time.Second,
			Again: func(t *testing.T) builder.Builder { return open(t, s.ami) },
			Other: func(t *testing.T) builder.Builder { return open(t, other) },
			Kill: func(t *testing.T, id string) {
				found, err := (&region{ec2: s.ec2}).instances(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				for _, i := range found {
					if i.State.Name == types.InstanceStateNameTerminated {
						continue
					}
					if _, err := s.ec2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{*i.InstanceId}}); err != nil {
						t.Fatal(err)
					}
				}
			},
			Leftovers: func(t *testing.T) []string {
				left := slices.DeleteFunc(s.all(), func(r string) bool {
					return slices.Contains(before, r) || strings.HasSuffix(r, " []") && strings.Contains(r, " snap-") // moto makes one for each AMI
				})
				entries, err := os.ReadDir(filepath.Join(s.home, "builds"))
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				for _, e := range entries {
					left = append(left, e.Name())
				}
				return left
			},
		}
	})
}

func (s *site) write(inline ...string) {
	s.t.Helper()
	text := fmt.Sprintf(`name: tiny
build:
  amazon:
    region: %s
    source: {ami: %s}
    instance_type: t3.small
    network: {subnet: %s, address: private}
    ssh: {user: root, port: %d, timeout: 5m}
    ami: {copy_to: [%s], tags: {team: web}}
provision:
  - file: {content: "release 1\n", destination: /www/index.html}
  - shell: {inline: [%s]}
test:
  - http: {port: 80, path: /, status: 200, contains: release, within: 60s}
`, here, s.ami, s.subnet, guestPort, there, strings.Join(quoted(inline), ", "))
	if err := os.WriteFile(filepath.Join(s.dir, "tiny.yaml"), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func quoted(lines []string) (out []string) {
	for _, l := range lines {
		out = append(out, strconv.Quote(l))
	}
	return out
}

func (s *site) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.bin, args...)
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), "REBAKE_HOME="+s.home)
	return cmd
}

func (s *site) rebake(args ...string) string {
	s.t.Helper()
	began := time.Now()
	out, err := s.command(args...).CombinedOutput()
	s.t.Logf("rebake %s: %v in %.1fs", strings.Join(args, " "), err, time.Since(began).Seconds())
	if err != nil {
		s.t.Fatalf("rebake %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// all are the resources of both regions, in words.
func (s *site) all() []string {
	w := &world{t: s.t, cloud: nil}
	var out []string
	for _, r := range []string{here, there} {
		c, err := ami.Connect(context.Background(), r)
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, w.listBy(c.EC2, r, nil)...)
	}
	return out
}

func TestATemplateEndsInAnAMIAndAnImage(t *testing.T) {
	s := newSite(t)
	s.write("sed -i 's/ -j -k / /' /sbin/init", // its sshd forwards connections from the next boot on
		"echo baked here >$HOME/made")
	before := s.all()
	out := s.rebake("build", "tiny.yaml")
	if !strings.Contains(out, "baked tiny:") {
		t.Errorf("no summary: %s", out)
	}
	list := s.rebake("ami", "ls", "tiny:latest")
	found := regexp.MustCompile(`ami-[0-9a-f]+`).FindAllString(list, -1)
	if len(found) < 2 || !strings.Contains(list, here) || !strings.Contains(list, there) {
		t.Fatalf("AMIs: %s", list)
	}
	s.rebake("images", "verify", "tiny:latest")
	s.rebake("images", "export", "tiny:latest", "--format", "raw", filepath.Join(s.dir, "disk.raw"))
	f, err := os.Open(filepath.Join(s.dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, 200<<20)) // moto makes volumes of 15 GiB
	if err != nil || !bytes.Contains(head, []byte("baked here\n")) {
		t.Errorf("the disk does not hold what was written to it: %v", err)
	}
	var left []string
	for _, r := range s.all() {
		if !slices.Contains(before, r) && !strings.Contains(r, ami.TagDigest) {
			left = append(left, r)
		}
		if strings.Contains(r, TagBuild) {
			t.Errorf("the build's tag is left: %s", r)
		}
	}
	// moto makes a snapshot without tags for each AMI that is registered.
	left = slices.DeleteFunc(left, func(r string) bool { return strings.Contains(r, " snap-") && strings.HasSuffix(r, " []") })
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if n := s.count("RunInstances"); n != 3 {
		t.Errorf("%d instances were launched, want the build's and two for tests", n)
	}
}

func TestGCRemovesWhatAKilledBuildMadeAndNothingElse(t *testing.T) {
	s := bare(t, moto.Start(t))
	s.program()
	s.insideGuests()
	_, err := s.ec2.RunInstances(t.Context(), &ec2.RunInstancesInput{ImageId: &s.ami, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), SubnetId: &s.subnet,
		TagSpecifications: tagged(tagList(map[string]string{TagBuild: "01jother", "Name": "not yours"}), types.ResourceTypeInstance, types.ResourceTypeVolume)})
	if err != nil {
		t.Fatal(err)
	}
	before := s.all()
	s.write("echo STEP-RUNS; sleep 1000")
	cmd := s.command("build", "tiny.yaml")
	var said safe
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(4 * time.Minute); !strings.Contains(said.String(), "STEP-RUNS"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the step never ran: %s", said.String())
		}
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	made := slices.DeleteFunc(s.all(), func(r string) bool { return slices.Contains(before, r) })
	if len(made) < 3 { // instance, volume, security group
		t.Fatalf("the kill left %q: the test is blind", made)
	}
	t.Logf("the kill left %q", made)
	if out := s.rebake("gc"); !strings.Contains(out, "machine") {
		t.Errorf("gc says %q", out)
	}
	if after := s.all(); !slices.Equal(after, before) { // no AMI was registered yet
		t.Errorf("after gc there is\n%s\nwant\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	entries, err := os.ReadDir(filepath.Join(s.home, "builds"))
	if err != nil && !errors.Is(err, os.ErrNotExist) || len(entries) > 0 {
		t.Errorf("builds: %v, %v", entries, err)
	}
}

// safe is a buffer that is written and read at once.
type safe struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safe) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safe) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
