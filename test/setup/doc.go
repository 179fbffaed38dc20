// Package setup holds the test of test/setup.sh, with false programs in the
// place of apt-get, sudo and what they install.
package setup
